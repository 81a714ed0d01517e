"""One GPU, one command: our training steps and samplers beside best-effort PyTorch in the same run.

    python -m maskdit.performance.gpu --out results

A driver of the standard library alone starts a JAX worker and, with `--peers`, a PyTorch worker. Both stay, and take
turns: nothing else runs on the GPU while one is timed. Phases come in the order of their importance; one starts only
where its estimate fits into what is left of `--budget` seconds, and leaves a line in `results/result.jsonl` either way.
The last thing printed is a table of all rates and ratios, also in `results/table.txt`. First of all the two sides get
the same weights and the same random numbers, in both directions, and must agree in the loss and the norm of the
gradient (1e-2 relative in bfloat16, 1e-4 in float32); ratios of systems that do not agree are marked.

Weights are random everywhere, also where training starts from zeros: products with zeros run faster than real ones.

`--tiny` runs the same phases with a network of a few thousand parameters, on a CPU too. `--phases sample,small` runs
a choice.

The peers' code is not part of this library. `--peers DIR` names a folder that holds it:

    DIR/DiT/models.py, DIR/DiT/diffusion/*.py     of github.com/facebookresearch/DiT
    DIR/MaskDiT/models/maskdit.py                 of github.com/Anima-Lab/MaskDiT

They need torch, numpy and timm. Without `--peers` our figures alone are printed.

A machine without a network: where there is one, download wheels for its Python (here 3.12 on x86-64), without what it
has already, such as jax and torch, and without their dependencies:

    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 -d wheels \\
        flax optax chex orbax-checkpoint tensorstore msgpack absl-py etils toolz humanize simplejson aiofiles \\
        treescope rich markdown-it-py mdurl pygments PyYAML typing-extensions protobuf psutil uvloop grain \\
        array-record ml-collections timm fsspec importlib-resources zipp attrs cloudpickle prometheus-client pillow

Carry the folder `wheels`, the peers and a checkout over, and there, in the checkout:

    python3 -m pip install -q --no-index --no-deps --no-compile --target site wheels/*.whl
    python3 -m pip install -q --no-index --no-deps --no-compile --target torch-site wheels/timm*.whl
    PYTHONUNBUFFERED=1 timeout -k 5 570 python3 -m maskdit.performance.gpu --budget 540 --out results \\
        --jax-path site --torch-path torch-site --peers peers

Two folders, so that what JAX was given never shadows what PyTorch uses. What a worker says goes to
`results/ours.log` and `results/torch.log`.
"""
