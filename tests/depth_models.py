"""Small residual networks: attention and feed-forward parts around norms, blocks of CNNs, and sums that are none."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper
from small_models import Builder

WIDTH = 8


class Net(Builder):
    """Parts of residual networks."""

    def norm(self, x: str, name: str, width: int = WIDTH) -> str:
        scale, bias = self.weight(f"{name}.weight", width, low=0.5), self.weight(f"{name}.bias", width)
        return self.op("LayerNormalization", [x, scale, bias], name, axis=-1)

    def forward(self, x: str, name: str, width: int = WIDTH) -> str:
        up = self.op("Relu", [self.linear(x, f"{name}.up", width, 2 * width)], f"{name}.act")
        return self.linear(up, f"{name}.down", 2 * width, width)

    def attention(self, x: str, name: str, width: int = WIDTH) -> str:
        """One head."""
        q, k, v = (self.linear(x, f"{name}.{part}", width, width) for part in ("q", "k", "v"))
        turned = self.op("Transpose", [k], f"{name}.turn", perm=[0, 2, 1])
        shares = self.op("Softmax", [self.op("MatMul", [q, turned], f"{name}.scores")], f"{name}.shares")
        return self.linear(self.op("MatMul", [shares, v], f"{name}.mix"), f"{name}.out", width, width)

    def cached(self, x: str, name: str, past: str) -> str:
        """One head, with the keys and values of a cache in front of its own."""
        q, k, v = (self.linear(x, f"{name}.{part}", WIDTH, WIDTH) for part in ("q", "k", "v"))
        for own, part in ((k, "keys"), (v, "values")):
            both = [f"past.{past}.{part}", own]
            self.nodes.append(helper.make_node("Concat", both, [f"present.{name}.{part}"], axis=1))
        turned = self.op("Transpose", [f"present.{name}.keys"], f"{name}.turn", perm=[0, 2, 1])
        shares = self.op("Softmax", [self.op("MatMul", [q, turned], f"{name}.scores")], f"{name}.shares")
        mix = self.op("MatMul", [shares, f"present.{name}.values"], f"{name}.mix")
        return self.linear(mix, f"{name}.out", WIDTH, WIDTH)

    def add(self, *terms: str, name: str) -> str:
        return self.op("Add", list(terms), name)

    def block(self, x: str, name: str, cin: int, cout: int) -> str:
        middle = self.op("Relu", [self.conv(x, f"{name}.conv1", cin, cout)], f"{name}.middle")
        return self.conv(middle, f"{name}.conv2", cout, cout)

    def graph(self, outputs: dict[str, list[object]], rank: int = 3) -> onnx.ModelProto:
        shape: list[object] = ["N", "T", WIDTH] if rank == 3 else ["N", 4, 6, 6]
        graph = helper.make_graph(
            self.nodes,
            "residual",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def transformer(kind: str = "pre", layers: int = 2, more: str = "") -> onnx.ModelProto:
    """Layers of attention and a feed-forward part.

    Parameters
    ----------
    kind : str
        Where norms are and how parts are added: ``pre``, ``post``, ``parallel`` (the sum of both parts is added to the
        stream) or ``in turn`` (both read one norm, and are added one after the other).
    layers : int
    more : str
        A tensor that is an output, too.
    """
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    for n in range(layers):
        name = f"layers.{n}"
        if kind == "pre":
            x = net.add(x, net.attention(net.norm(x, f"{name}.ln1"), f"{name}.attn"), name=f"{name}.add1")
            x = net.add(net.forward(net.norm(x, f"{name}.ln2"), f"{name}.mlp"), x, name=f"{name}.add2")
        elif kind == "post":
            x = net.norm(net.add(x, net.attention(x, f"{name}.attn"), name=f"{name}.add1"), f"{name}.ln1")
            x = net.norm(net.add(x, net.forward(x, f"{name}.mlp"), name=f"{name}.add2"), f"{name}.ln2")
        else:
            read = net.norm(x, f"{name}.ln")
            parts = net.attention(read, f"{name}.attn"), net.forward(read, f"{name}.mlp")
            if kind == "parallel":
                x = net.add(x, net.add(*parts, name=f"{name}.both"), name=f"{name}.add")
            else:
                x = net.add(net.add(x, parts[0], name=f"{name}.add1"), parts[1], name=f"{name}.add2")
    net.linear(net.norm(x, "last"), "head", WIDTH, 5)
    extra = {more: ["N", "T", WIDTH]} if more else {}
    return net.graph({"head.add_out": ["N", "T", 5], **extra})


def decoder(shared: bool = False) -> onnx.ModelProto:
    """Two layers whose attention has a cache; shared: the second reads that of the first, too."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    for n in range(2):
        name = f"layers.{n}"
        past = "layers.0.attn" if shared else f"{name}.attn"
        read = net.norm(x, f"{name}.ln1")
        x = net.add(x, net.cached(read, f"{name}.attn", past), name=f"{name}.add1")
        x = net.add(x, net.forward(net.norm(x, f"{name}.ln2"), f"{name}.mlp"), name=f"{name}.add2")
    net.linear(net.norm(x, "last"), "head", WIDTH, 5)
    caches = [f"layers.{n}.attn.{kind}" for n in range(2) for kind in ("keys", "values")]
    present = {f"present.{cache}": ["N", "P + T", WIDTH] for cache in caches}
    model = net.graph({"head.add_out": ["N", "T", 5], **present})
    for cache in caches[: 2 if shared else 4]:
        past = helper.make_tensor_value_info(f"past.{cache}", TensorProto.FLOAT, ["N", "P", WIDTH])
        model.graph.input.append(past)
    return model


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model twice in the bodies of an If, on the same weights."""
    bodies = {}
    for branch in ("then_branch", "else_branch"):
        body = bodies[branch] = onnx.GraphProto(name=branch, node=model.graph.node, output=model.graph.output)
        made = {name for node in body.node for name in node.output}
        for node in body.node:
            node.name = f"{node.name}@{branch}" if node.name else ""
            for names in (node.input, node.output):
                names[:] = [f"{name}@{branch}" if name in made else name for name in names]
        for value in body.output:
            value.name = f"{value.name}@{branch}"
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.node[:]
    outputs = [value.name for value in model.graph.output]
    whole.graph.node.append(helper.make_node("If", ["cached"], outputs, "choice", **bodies))
    whole.graph.input.append(helper.make_tensor_value_info("cached", TensorProto.BOOL, [1]))
    return whole


def fused(layers: int = 2) -> onnx.ModelProto:
    """As `transformer`, with sums that are fused with the norms behind them, and with biases of the parts."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    read = net.norm(x, "first")
    for n in range(layers):
        for part, kind in ((net.attention, "attn"), (net.forward, "mlp")):
            name = f"layers.{n}.{kind}"
            given = [x, part(read, name), net.weight(f"{name}.scale", WIDTH, low=0.5)]
            given += [
                net.weight(f"{name}.{more}", WIDTH) for more in ("shift", "bias")[: 1 + (kind == "mlp")]
            ]
            read, x = f"{name}.normed", f"{name}.stream"
            net.nodes.append(
                helper.make_node(
                    "SkipLayerNormalization", given, [read, "", "", x], name=name, domain="com.microsoft"
                )
            )
    net.linear(read, "head", WIDTH, 5)
    return net.graph({"head.add_out": ["N", "T", 5]})


def images(kind: str = "basic", blocks: int = 3, behind: str = "Relu") -> onnx.ModelProto:
    """Blocks of convolutions, and a sum over all places.

    Parameters
    ----------
    kind : str
        ``basic`` (an activation behind each sum), ``before`` (activations in the branches only), ``projection`` (a
        layer on the stream of each block) or ``alike`` (two layers on either side).
    blocks : int
    behind : str
        The activation behind each sum.
    """
    net = Net()
    x = net.op("Relu", [net.conv("x", "stem", 4, 4)], "stem.relu")
    for n in range(blocks):
        name = f"blocks.{n}"
        if kind == "before":
            branch = net.block(net.op("Relu", [x], f"{name}.first"), name, 4, 4)
            x = net.add(x, branch, name=f"{name}.add")
            continue
        stream = x
        if kind == "projection":
            stream = net.conv(x, f"{name}.past", 4, 4, 1)
        elif kind == "alike":
            stream = net.block(x, f"{name}.other", 4, 4)
        x = net.op(behind, [net.add(stream, net.block(x, name, 4, 4), name=f"{name}.add")], f"{name}.relu")
    net.op("GlobalAveragePool", [x], "pool")
    net.op("Flatten", ["pool_out"], "flat")
    net.linear("flat_out", "head", 4, 3)
    return net.graph({"head.add_out": ["N", 3]}, rank=4)


def no_branches() -> onnx.ModelProto:
    """Sums that are none of a stream and a branch: of a value and its cube, of two layers, of a constant."""
    net = Net()
    x = net.linear("x", "first", WIDTH, WIDTH)
    cube = net.op("Mul", [net.op("Mul", [x, x], "square"), x], "cube")
    x = net.add(x, net.op("Mul", [cube, net.constant("c", np.float32(0.044))], "part"), name="gelu")
    x = net.add(net.linear(x, "one", WIDTH, WIDTH), net.linear(x, "two", WIDTH, WIDTH), name="both")
    return net.graph({x: ["N", "T", WIDTH]})


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "pre-norm": transformer,
    "post-norm": lambda: transformer("post"),
    "parallel": lambda: transformer("parallel"),
    "in turn": lambda: transformer("in turn"),
    "fused": fused,
    "basic blocks": images,
    "activations before": lambda: images("before"),
    "projections": lambda: images("projection"),
}
