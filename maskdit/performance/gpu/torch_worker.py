"""The PyTorch worker: published networks, run as well as we know how; see `maskdit.performance.gpu`.

Best effort means: bfloat16 autocast, `torch.compile` of network and loss, attention by the faster of the flash and the
cuDNN kernel, fused AdamW, one `foreach` call for the average of the weights, data and tables on the device, and no
value read back in a step. `published` instead runs DiT's own trainer: eager, TF32, its loss, `.item()` in each step.
"""

import contextlib
import copy
import functools
import importlib.util
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from maskdit.performance.gpu import torch_losses as losses
from maskdit.performance.gpu.plan import PUBLISHED_DECODER, Workload
from maskdit.performance.gpu.protocol import serve

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SHARE = 0.44
"""Of the GPU's memory; the rest is JAX's."""
DECAY = 0.9999
Tensors = dict[str, Any]


class Theirs:
    """Answers the driver's requests."""

    def __init__(self, peers: pathlib.Path):
        self.peers = peers
        self.trainers: dict[str, Trainer] = {}

    def hello(self, folder: str) -> dict[str, Any]:
        """Versions and device; `folder` is for JAX."""
        del folder
        if CUDA:
            torch.cuda.set_per_process_memory_fraction(SHARE)
        torch._dynamo.config.recompile_limit = 64  # all workloads count as one function; past it they would run eagerly
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        import timm

        versions = {"torch": torch.__version__, "timm": timm.__version__, "cuda": str(torch.version.cuda)}
        return {"versions": versions, "device": torch.cuda.get_device_name() if CUDA else "cpu"}

    def ceilings(self, product: int, copied: int) -> dict[str, float]:
        """FLOP/s of a square bfloat16 product of random matrices, and bytes/s of a copy, read and written."""
        a, b = (torch.randn(product, product, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        seconds = sorted(_seconds(lambda: a @ b, 10) for _ in range(4))[1]
        whole = torch.randn(copied // 4, device=DEVICE)
        target = torch.empty_like(whole)
        rate = 2 * copied / sorted(_seconds(lambda: target.copy_(whole), 10) for _ in range(4))[1]
        return {"flops": 2.0 * product**3 / seconds, "bytes": rate}

    def compile(self, workload: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds of the first forward and backward pass."""
        trainer = self._trainer(Workload.read(workload))
        begin = time.perf_counter()
        trainer.loss(trainer.draw()).backward()
        trainer.optimizer.zero_grad()
        _wait()
        return {"compile": time.perf_counter() - begin, "attention": trainer.attention.name}

    def check(self, workload: Mapping[str, Any], folder: str, own: bool) -> dict[str, Any]:
        """Loss and gradient norm with the draws, and unless `own` the weights, that the JAX worker left in `folder`.

        With `own` weights, writes them to `theirs.npz`.
        """
        work, where = Workload.read(workload), pathlib.Path(folder)
        trainer = self._trainer(work)
        if own:
            _shake(trainer.model)
            np.savez(where / "theirs.npz", **{name: value.numpy(force=True) for name, value in trainer.weights()})
        else:
            with np.load(where / "ours.npz") as file:
                trainer.load({name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file.files})
        with np.load(where / "draws.npz") as file:
            value = trainer.loss(trainer.drawn({name: torch.from_numpy(file[name]) for name in file.files}))
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.trained if p.grad is not None])
        trainer.optimizer.zero_grad()
        return {"loss": float(value.detach()), "grad_norm": float(norm), "dtype": "bfloat16" if CUDA else "float32"}

    def time(self, workload: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """Seconds per step, and the peak of allocated memory."""
        trainer = self._trainer(Workload.read(workload))
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(trainer.step, steps)
        return {"seconds": seconds, "memory": _peak(), "attention": trainer.attention.name}

    def drop(self) -> dict[str, Any]:
        """Frees all models."""
        self.trainers.clear()
        if CUDA:
            torch.cuda.empty_cache()
        return {"peak": _peak()}

    def published(self, workload: Mapping[str, Any], batch: int, steps: int) -> dict[str, Any]:
        """Seconds per step of DiT's own trainer: eager, TF32, its loss, its average, `.item()` in each step."""
        work = Workload.read(workload)
        model = _network(self.peers, work).train()
        diffusion = _module("published_diffusion", self.peers / "DiT" / "diffusion" / "__init__.py").create_diffusion(
            ""
        )
        average = copy.deepcopy(model).requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
        z = torch.randn(batch, work.channels, work.input_size, work.input_size, device=DEVICE)
        y = torch.randint(0, work.classes, (batch,), device=DEVICE)
        model.y_embedder.token_drop = functools.partial(_token_drop, work.classes)

        def step() -> None:
            t = torch.randint(0, diffusion.num_timesteps, (batch,), device=DEVICE)
            value = diffusion.training_losses(model, z, t, {"y": y})["loss"].mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            with torch.no_grad():
                for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                    mean.mul_(DECAY).add_(parameter, alpha=1 - DECAY)
            value.item()

        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        _seconds(step, 2)
        return {"seconds": _seconds(step, steps), "memory": _peak()}

    def sample(self, workload: Mapping[str, Any], batch: int, steps: int, repeats: int) -> dict[str, Any]:
        """Seconds of ancestral sampling runs of latents with guidance 1.5, bfloat16 weights, one compiled step."""
        work = Workload.read(workload)
        model = _network(self.peers, work).to(torch.bfloat16 if CUDA else torch.float32).eval()
        sampler = losses.Ancestral(steps, DEVICE)
        backend = _attention(2 * batch, work.heads, work.tokens, work.width // work.heads)
        move = torch.compile(functools.partial(sampler.move, model), mode="reduce-overhead", dynamic=False)
        y = torch.cat([torch.randint(0, work.classes, (batch,)), torch.full((batch,), work.classes)]).to(DEVICE)

        def run() -> None:
            x = torch.randn(batch, work.channels, work.input_size, work.input_size, device=DEVICE)
            with torch.no_grad(), _autocast(), sdpa_kernel(backend):
                for index in sampler.places:
                    torch.compiler.cudagraph_mark_step_begin()
                    x = move(x, y, index, torch.randn_like(x)).clone()

        begin = time.perf_counter()
        run()
        _wait()
        compiled = time.perf_counter() - begin
        return {"compile": compiled, "seconds": [_seconds(run, 1) for _ in range(repeats)], "attention": backend.name}

    def checkpoint(self, workload: Mapping[str, Any], folder: str) -> dict[str, Any]:
        """Seconds of `torch.save` and `torch.load` of weights, average and optimizer."""
        trainer = self._trainer(Workload.read(workload))
        trainer.step()
        parts = {"model": trainer.model, "opt": trainer.optimizer}
        state = {"ema": trainer.average, **{name: part.state_dict() for name, part in parts.items()}}
        file = pathlib.Path(folder) / "state.pt"
        saved = _seconds(lambda: torch.save(state, file), 1)
        loaded = _seconds(lambda: torch.load(file, map_location=DEVICE, weights_only=True), 1)
        return {"stall": saved, "total": saved, "restore": loaded, "bytes": file.stat().st_size}

    def _trainer(self, work: Workload) -> "Trainer":
        if work.name not in self.trainers:
            kin = [t for t in self.trainers.values() if t.work.system == work.system and t.work.depth == work.depth]
            if work.system == "dit":
                kin = []
                self.trainers = {name: t for name, t in self.trainers.items() if t.work.system != "dit"}
            self.trainers[work.name] = Trainer(self.peers, work, kin[0] if kin else None)
        return self.trainers[work.name]


class Trainer:
    """A model with its compiled loss, optimizer and average; MaskDiT's mask ratios share them.

    Attributes:
      work: the workload.
      model: the published network.
      optimizer, average: of its trained parameters.
      attention: the kernel chosen.
    """

    def __init__(self, peers: pathlib.Path, work: Workload, kin: "Trainer | None"):
        self.work = work
        self.attention = _attention(work.batch, work.heads, work.keep or work.tokens, work.width // work.heads)
        self.model: Any = _network(peers, work) if kin is None else kin.model
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer: Any = _adamw(self.trained) if kin is None else kin.optimizer
        self.average: list[Any] = [p.detach().clone() for p in self.trained] if kin is None else kin.average
        function = losses.ddpm(DEVICE) if work.system == "dit" else losses.edm(work.ratio, work.patch)
        self._loss = torch.compile(functools.partial(function, self.model), dynamic=False)
        shape = (work.batch, work.channels, work.input_size, work.input_size)
        self._z = torch.rand(shape, device=DEVICE) * 2 - 1
        self._labels = torch.randint(0, work.classes, (work.batch,), device=DEVICE)

    def weights(self) -> Iterator[tuple[str, Any]]:
        """The state dict, item by item."""
        yield from self.model.state_dict().items()

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes a state dict, all of it."""
        self.model.load_state_dict(state, strict=True)

    def draw(self) -> Tensors:
        """Random inputs of a step, on the device."""
        work, size = self.work, self.work.batch
        labels = torch.where(torch.rand(size, device=DEVICE) < 0.1, work.classes, self._labels)
        noise = torch.randn_like(self._z)
        if work.system == "dit":
            t = torch.randint(0, 1000, (size,), device=DEVICE)
            return {"z": self._z, "labels": labels, "noise": noise, "t": t}
        sigma = torch.exp(torch.randn(size, device=DEVICE) * 1.2 - 1.2)
        order = torch.argsort(torch.rand(size, work.tokens, device=DEVICE), dim=1)
        return {"z": self._z, "labels": self._one_hot(labels), "noise": noise, "sigma": sigma, "order": order}

    def drawn(self, given: Mapping[str, Any]) -> Tensors:
        """The inputs of a step that the JAX worker recorded, channels last there and first here."""
        tensors = {name: value.to(DEVICE) for name, value in given.items()}
        for name in ("z", "noise"):
            tensors[name] = tensors[name].permute(0, 3, 1, 2).contiguous()
        for name in {"labels", "t", "order"} & set(tensors):
            tensors[name] = tensors[name].long()
        if self.work.system == "maskdit":
            tensors["labels"] = self._one_hot(tensors["labels"])
        return tensors

    def loss(self, tensors: Tensors) -> Any:
        """The mean loss."""
        # MaskDiT masks in training mode only; DiT's own label dropout is off, as labels come dropped
        if self.model.training != (self.work.system == "maskdit"):
            self.model.train(not self.model.training)
        with _autocast(), sdpa_kernel(self.attention):
            return self._loss(**tensors)

    def step(self) -> None:
        """One training step."""
        self.loss(self.draw()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.trained, 1 - DECAY)

    def _one_hot(self, labels: Any) -> Any:
        """Dropped labels have no one."""
        return torch.nn.functional.one_hot(labels, self.work.classes + 1)[:, :-1].float()


def _adamw(parameters: list[Any]) -> Any:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0, fused=True)


def _network(peers: pathlib.Path, work: Workload) -> Any:
    """The published network on the device, its weights random throughout."""
    sizes = {"hidden_size": work.width, "depth": work.depth, "num_heads": work.heads, "patch_size": work.patch}
    if work.system == "dit":
        module = _module("published_dit", peers / "DiT" / "models.py")
        sizes |= {"input_size": work.input_size, "in_channels": work.channels}
        return _shake(module.DiT(**sizes, num_classes=work.classes, learn_sigma=True).to(DEVICE))
    module = _module("published_maskdit", peers / "MaskDiT" / "models" / "maskdit.py")
    module.DiT_models["of this size"] = functools.partial(module.DiT, **sizes)
    network = module.EDMPrecond(
        img_resolution=work.input_size,
        img_channels=work.channels,
        num_classes=work.classes,
        model_type="of this size",
        use_decoder=True,
        mae_loss_coef=0.1,
    )
    if work.decoder != PUBLISHED_DECODER:
        _small_decoder(module, network.model, work)
    return _shake(network.to(DEVICE))


def _shake(network: Any) -> Any:
    """Adds noise to every trained parameter: networks start from many zeros, and products with zeros run faster."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return network


def _small_decoder(module: Any, model: Any, work: Workload) -> None:
    """Another decoder than the one that the published network builds in."""
    width, depth, heads = work.decoder
    table = module.get_2d_sincos_pos_embed(width, work.input_size // work.patch)
    model.decoder_pos_embed = torch.nn.Parameter(torch.tensor(table, dtype=torch.float32)[None], requires_grad=False)
    model.decoder_layer = module.DecoderLayer(work.width, width)
    model.decoder_blocks = torch.nn.ModuleList(module.DiTBlock(width, work.width, heads) for _ in range(depth))
    model.mask_token = torch.nn.Parameter(torch.zeros(1, 1, width))
    model.final_layer = module.FinalLayer(width, work.width, work.patch, work.channels)


@functools.cache
def _module(name: str, path: pathlib.Path) -> Any:
    """A published file as a module of its own name: both repositories call theirs `models`."""
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _token_drop(classes: int, labels: Any, force_drop_ids: Any = None) -> Any:
    """DiT's label dropout on the labels' device, where some versions of the file draw on the host."""
    del force_drop_ids
    return torch.where(torch.rand(labels.shape[0], device=labels.device) < 0.1, classes, labels)


@functools.cache
def _attention(batch: int, heads: int, tokens: int, channels: int) -> SDPBackend:
    """The faster of the flash and the cuDNN kernel at a shape, forward and backward."""
    if not CUDA:
        return SDPBackend.MATH
    shape = (batch, heads, tokens, channels)
    q, k, v = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with contextlib.suppress(RuntimeError), sdpa_kernel(backend):  # not every kernel takes every shape
            run: Callable[[], Any] = lambda: scaled_dot_product_attention(q, k, v).sum().backward()  # noqa: E731
            _seconds(run, 3)
            found[backend] = _seconds(run, 20)
    return min(found, key=found.__getitem__) if found else SDPBackend.MATH


def _autocast() -> Any:
    return torch.autocast("cuda", torch.bfloat16) if CUDA else contextlib.nullcontext()


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Seconds of one of so many calls, waited for at their end."""
    _wait()
    begin = time.perf_counter()
    for _ in range(times):
        run()
    _wait()
    return (time.perf_counter() - begin) / times


def _wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if CUDA else 0


def main() -> None:
    """Serves; the argument is the folder of the peers' code."""
    theirs = Theirs(pathlib.Path(sys.argv[1]))
    names = [name for name in vars(Theirs) if not name.startswith("_")]
    serve({name: getattr(theirs, name) for name in names})


if __name__ == "__main__":
    main()
