"""Weights under the names of PyTorch projects: written, read back, and checked.

Each family of encoders has a file here with the name of the encoder's file in
mixjax/models: vit.py, beit.py, swin.py, resnet.py. It is found by that name, and no
list names it (families.py). A new encoder NAME is exported, read and checked once
mixjax/export/NAME.py holds

    FAMILY = Family(rules=..., dialects=..., model_of=..., first_kernel=..., ...)

The fields are described at families.Family. The first four are what every family has:
the names for each target it goes to, the names that are recognised in files, a function
that reads config.model off the shapes of arrays, and the path of the first
convolution's kernel. The others have defaults: `torch` for --check against an installed
package, `timm_class` for the model card, `hf` for files of Hugging Face, and so on.

--check needs a torch network under the same names. It comes from timm or torchvision
where they are installed and `FAMILY.torch` builds their class; otherwise from
tests/support/torch_models/NAME.py, whose `build(target, model, stem)` returns a module
with a method `outputs`.

What the other files do:

    families.py       the description of a family, and how one is found
    name_rules.py     rules (our path, their name) that are read in both directions
    formats.py        the targets, and what cannot go to them
    recognise.py      which family and project a file's names belong to
    read_foreign.py   a file of weights -> arrays and the network that they fit
    read_shapes.py    what families use to read config.model off shapes
    files.py          the file formats; safe_unpickle.py reads pickles without running
                      anything
    weights.py        the weights of a run's newest checkpoint
    check.py          compares with torch, which runs torch_side.py in its own process
    hf.py, card.py    the text files beside exported weights

Only torch_side.py imports torch, and it is a program of its own.
"""
