"""Block-wise reconstruction: layers that stand between two narrow places of a graph are fitted together."""
