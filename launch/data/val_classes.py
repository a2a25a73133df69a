"""Prints "PICTURE CLASS" for each validation picture of ImageNet-1K.

python launch/data/val_classes.py ILSVRC2012_devkit_t12.tar.gz
"""

import io
import sys
import tarfile

import scipy.io  # comes with JAX


def classes(devkit: str) -> list[str]:
    """The class (such as n01440764) of every validation picture, in their order."""
    with tarfile.open(devkit) as archive:
        read = lambda name: archive.extractfile(
            f"ILSVRC2012_devkit_t12/data/{name}"
        ).read()
        meta = scipy.io.loadmat(io.BytesIO(read("meta.mat")), squeeze_me=True)
        numbers = read("ILSVRC2012_validation_ground_truth.txt").split()
    synsets = meta["synsets"]
    names = dict(zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True))
    return [str(names[int(number)]) for number in numbers]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for i, name in enumerate(classes(sys.argv[1]), start=1):
        print(f"ILSVRC2012_val_{i:08}.JPEG {name}")
