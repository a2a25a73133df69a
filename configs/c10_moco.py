"""MoCo on CIFAR-10 with a ResNet-18, alone or with a mixture.

    python -m mixjax.main --config=configs/c10_moco.py --workdir=...
    variants: :symmetric=1, :mixture=unmix (or another, docs/mixtures.md),
    :branches=both, :epochs=1000; :epochs=200 is the notebook's run

Un-Mix's README, kNN (k = 200, T = 0.1), 1000 epochs: asymmetric 89.11, with Un-Mix
91.34; symmetric 90.49 and 92.25. MoCo's notebook: 82.6 after 200 epochs, asymmetric.
One GPU, a few hours. Split batch norms are of neighbours, not every eighth example.
"""

from configs import siamese


def get_config(arg=""):
    return siamese.recipe(siamese.moco_cifar, "c10", arg, epochs=1000, symmetric=False)
