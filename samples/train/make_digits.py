"""Write ``samples/data/digits.npz``: scikit-learn's bundled digits with one fixed split.

The samples read that file, so they need neither scikit-learn nor a download. Run it again only to check
that the file is what this script says it is::

    pip install -e ".[train]"
    python samples/train/make_digits.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

OUT = Path(__file__).resolve().parents[1] / "data" / "digits.npz"


def main() -> None:
    """Split 1,797 images into 1,347 for training and 450 held out, stratified, seed 0."""
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.reshape(-1, 8, 8).astype(np.uint8),  # values 0 to 16
        labels.astype(np.uint8),
        test_size=450,
        random_state=0,
        stratify=labels,
    )
    np.savez_compressed(OUT, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    print(f"{OUT.name}: {len(train_x)} for training, {len(test_x)} held out")


if __name__ == "__main__":
    main()
