"""A tokenizer trained to give images back: reconstruction, perceptual and adversarial terms, and those of its codes.

VQGAN's recipe (Esser et al. 2021, arXiv 2012.09841), which latent diffusion, TiTok and their successors train by. Two
groups of parameters, one forward pass of the tokenizer: the discriminator learns on the images that it gave.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from maskdit.config import Named
from maskdit.contracts import Array, Cond, Draw, Latents, Loss, Plan, Prediction, PyTree, example_image
from maskdit.tasks import autoencoder_checks
from maskdit.tasks.adversarial import last_layer_gradients
from maskdit.tasks.proxy import proxy_cross_entropy
from maskdit.tasks.reconstruction import Reconstruction
from maskdit.tasks.task import Context
from maskdit.tokenizers.model import TokenizerModel
from maskdit.tokenizers.pixels import to_float
from maskdit.tokenizers.quantize import usage
from maskdit.tokenizers.quantize.bridge import fold
from maskdit.training.mesh import unboxed
from maskdit.training.optim import Group

_LOG = logging.getLogger(__name__)
TOKENIZER, DISCRIMINATOR = "tokenizer", "discriminator"
TRAINED = "^(tokenizer|alignment|next_token)/"
"""Pattern of what the tokenizer's group trains: its own parameters, and those of the terms that hold its latents."""
ADVERSARIAL = "adversarial"
"""Phase of the steps in which the generator's loss has its adversarial term."""


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """Trains `tokenizer` to give images back.

    Attributes:
      tokenizer: what is trained.
      groups: `tokenizer`, and `discriminator` where there is one; see `maskdit.training.optim.Group`.
      reconstruction: distance of pixels.
      perceptual: distance of features of frozen networks; None for none.
      perceptual_weight: its factor.
      adversarial: the discriminator and what it is trained for; None for none. Its group starts where the term does.
      quantizer_weight: factor of the terms of the codes; 0 leaves codebooks as they are, averaged ones too.
      kl_weight: factor of the posterior's divergence in nats, summed over an image's latents.
      perturbation: what is done to codes on their way to the decoder (RobustTok); None for nothing.
      alignment: latents held near features of a frozen encoder (VA-VAE); None for none.
      next_token: latents held predictable for a small causal network (CRT); None for none.
      proxy: codes of another tokenizer to predict in place of pixels (TiTok's first stage); None for pixels.
      usage_window: updates over which a codebook's usage and perplexity are told.
      horizon: steps that schedules and phases span; 0 until a run sets it.

    Raises:
      ValueError: for groups that do not go with the terms.
    """

    tokenizer: Any
    groups: Mapping[str, Group] = dataclasses.field(default_factory=lambda: {TOKENIZER: Group(patterns=(TRAINED,))})
    reconstruction: Reconstruction = Reconstruction()
    perceptual: Any = None
    perceptual_weight: float = 1.0
    adversarial: Any = None
    quantizer_weight: float = 1.0
    kl_weight: float = 1e-6
    perturbation: Any = None
    alignment: Any = None
    next_token: Any = None
    proxy: Any = None
    usage_window: int = 100
    horizon: int = 0

    def __post_init__(self) -> None:
        wanted = [TOKENIZER] + [DISCRIMINATOR] * (self.adversarial is not None)
        if set(self.groups) != set(wanted):
            raise ValueError(
                f"the groups of this task are {' and '.join(wanted)}, got {', '.join(self.groups)}: a discriminator "
                "has a group if `adversarial` is set, and none otherwise"
            )
        ordered = {name: self.groups[name] for name in wanted}  # a config's entries come by the alphabet
        if self.adversarial is not None:
            judge, start = ordered[DISCRIMINATOR], self.adversarial.start
            if judge.start not in (0, start):
                raise ValueError(f"the discriminator starts with its term, at {start}: leave its group's start at 0")
            ordered[DISCRIMINATOR] = dataclasses.replace(judge, start=start)
        object.__setattr__(self, "groups", Named(ordered))
        if self.groups[TOKENIZER].every != 1 or self.groups[TOKENIZER].start:
            raise ValueError("the discriminator learns on the tokenizer's images: its group runs in every step")
        autoencoder_checks.terms(self)

    def init(self, draw: Draw, batch: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
        """Parameters by network, and the task's state: what the tokenizer learns without gradients (`tokenizer`), the
        window of its codes' usage (`usage`), means of the discriminator's logits (`lecam`). Draws: `tokenizer`,
        `discriminator`, `alignment`, `next_token`.
        """
        image = jnp.zeros((1, *batch["image"].shape[1:]))
        cond = self._condition({name: jnp.zeros((1, *batch[name].shape[1:])) for name in batch if name == "text"})
        variables = self.tokenizer.init(draw.init_key("tokenizer"), image, cond)
        params, state = {TOKENIZER: variables["params"]}, {}
        if "state" in variables:
            state["tokenizer"] = variables["state"]
        codes = getattr(self.tokenizer, "code_count", self.tokenizer.latent.vocabulary)
        if codes is not None:
            state["usage"] = usage.init(codes)
        if self.adversarial is not None:
            params[DISCRIMINATOR] = self.adversarial.discriminator.init(draw.init_key("discriminator"), image)["params"]
            state["lecam"] = self.adversarial.init_state()
        if self.alignment is not None or self.next_token is not None:
            latents = jax.eval_shape(lambda: self.tokenizer.apply(variables, image, cond, method="encode"))
        if self.alignment is not None:
            params["alignment"] = self.alignment.init(draw.init_key("alignment"), image, latents.values)
        if self.next_token is not None:
            params["next_token"] = self.next_token.init(draw.init_key("next_token"), latents.values)
        trained = self.groups[TOKENIZER].select(params)
        if left := {"alignment", "next_token"} & (params.keys() - trained.keys()):
            raise ValueError(
                f"no pattern of the group '{TOKENIZER}' finds {min(left)}/: add '{TRAINED}' to its patterns"
            )
        return params, state

    def freeze(
        self, draw: Draw, images: Callable[[], Iterable[Any]], given: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, PyTree]:
        """Variables of the feature networks and of the tokenizer whose codes are predicted. Draws: their names."""
        made, networks = {}, self.frozen_networks()
        if unknown := given.keys() - {path for path, _ in networks.values()}:
            raise ValueError(f"task.{min(unknown)} is trained: to start from other weights, set init_from to them")
        for name, (path, module) in networks.items():
            key = draw.init_key(name)

            def fresh(module: Any = module, key: Any = key) -> PyTree:
                return unboxed(module.init(key, example_image(module)))

            if path in given:
                made[name] = given[path].over(fresh)
            else:
                _LOG.warning("task.%s has random weights: give it a source, pretrained(SOURCE, spec=...)", path)
                made[name] = jax.jit(fresh)()
        return made

    def check(self, batch: Mapping[str, Any], vocabulary: Mapping[str, tuple[str, ...]]) -> None:
        """Holds the data against what the tokenizer takes.

        Raises:
          ValueError: for data without images, images of another size, and missing texts.
        """
        autoencoder_checks.data(self, batch)

    def plan(self, step: int) -> Plan:
        """Whether the generator's loss has its adversarial term yet."""
        return Plan(phase=ADVERSARIAL) if self.adversarial and step >= self.adversarial.start else Plan()

    def loss(self, group: str, params: PyTree, ctx: Context) -> tuple[Loss, PyTree]:
        """The tokenizer's loss, or the discriminator's on the images that the tokenizer gave in the same step.

        Draws: `tokenizer` and `perturbation`, each with the draws of that part.
        """
        return self._discriminator(params, ctx) if group == DISCRIMINATOR else self._tokenizer(params, ctx)

    def held_out(self, params: PyTree, ctx: Context) -> Loss:
        """Distance of pixels and features without what training adds; `psnr` in dB, as `image_quality.psnr_floored`."""
        images, cond = to_float(ctx.batch["image"]), self._condition(ctx.batch)
        variables = self._variables(params, ctx.state)
        latents = self.tokenizer.apply(variables, images, cond, method="encode")
        if self.proxy is not None:
            value, metrics, _ = self._proxied(variables, latents, images, cond, ctx.frozen)
        else:
            decoded = self.tokenizer.apply(variables, latents, cond, method="decode")
            value, metrics = self._distance(images, decoded, ctx.frozen)
            error = jnp.square((_quantised(decoded) - _quantised(images)) / 255).mean((1, 2, 3))
            metrics["psnr"] = -10 * jnp.log10(jnp.maximum(error, 1e-10))
        return Loss(value=value, weight=ctx.batch["weight"], metrics=metrics)

    def completed(self, variables: PyTree) -> tuple[Any, PyTree]:
        """The tokenizer and its parameters; one that was trained on proxy codes with the decoder of those."""
        params = variables["params"].get(TOKENIZER, {})
        if self.proxy is None or not params:
            return self.tokenizer, params
        return self.proxy.completed(self.tokenizer, params, variables["frozen"]["proxy"])

    def model(self, variables: PyTree, vocabulary: Mapping[str, tuple[str, ...]]) -> TokenizerModel:
        """The tokenizer alone, as `completed`, with what only training needs folded away."""
        tokenizer, params = self.completed(variables)
        quantizer = getattr(tokenizer, "quantize", None)
        if getattr(quantizer, "bridge", None) is not None and params:
            quantizer, codes = fold(quantizer, params["quantize"])
            tokenizer, params = tokenizer.clone(quantize=quantizer), {**params, "quantize": codes}
        state = {name: part for name, part in variables["state"].items() if name == TOKENIZER}
        return TokenizerModel(tokenizer, {"params": {TOKENIZER: params}, "state": state})

    def _tokenizer(self, params: PyTree, ctx: Context) -> tuple[Loss, PyTree]:
        images, cond = to_float(ctx.batch["image"]), self._condition(ctx.batch)
        variables = self._variables(params, ctx.state)
        latents, state = self._encoded(variables, images, cond, ctx)
        value, batch, metrics = self._of_codes(latents, len(images))
        metrics |= self._told(state, ctx.step, len(images))
        if self.proxy is not None:
            distance, more, said = self._proxied(variables, latents, images, cond, ctx.frozen)
            return Loss(value + distance, jnp.ones(len(images)), batch, metrics | more, prediction=said), state
        seen = latents
        if self.perturbation is not None:
            codebook = self.tokenizer.apply(variables, method="codebook")
            ratio = self.perturbation.ratio(ctx.step / max(self.horizon, 1))
            seen = self.perturbation.apply(latents, codebook, ctx.draw.named("perturbation"), ratio)
        decoded = self.tokenizer.apply(variables, seen, cond, method="decode", train=True)
        distance, more = self._judged(params, ctx, seen, images, decoded)
        terms, told = self._regularised(params, ctx, images, latents)
        loss = Loss(
            value=value + distance + sum(terms.values(), jnp.zeros(len(images))),
            weight=jnp.ones(len(images)),
            batch=batch,
            metrics=metrics | more | terms | told,
            prediction=Prediction(x=decoded),
        )
        return loss, state

    def _discriminator(self, params: PyTree, ctx: Context) -> tuple[Loss, PyTree]:
        assert self.adversarial is not None
        value, batch, metrics, lecam = self.adversarial.discriminator_loss(
            params[DISCRIMINATOR],
            to_float(ctx.batch["image"]),
            ctx.outputs[TOKENIZER].x,
            ctx.state["lecam"],
            ctx.step,
        )
        loss = Loss(value=value, weight=jnp.ones(len(value)), batch=batch, metrics=metrics)
        return loss, {**ctx.state, "lecam": lecam}

    def frozen_networks(self) -> dict[str, tuple[str, Any]]:
        """The networks that are not trained: name -> (path of the field in this task, module)."""
        fields = {"lpips": "perceptual.lpips", "convnext": "perceptual.convnext", "proxy": "proxy.tokenizer"}
        fields["alignment"] = "alignment.encoder"
        found = {}
        for name, path in fields.items():
            part, field = path.split(".")
            module = getattr(getattr(self, part), field, None)
            if module is not None:
                found[name] = (path, module)
        return found

    def _condition(self, batch: Mapping[str, Array]) -> Cond:
        return Cond(text=batch["text"].astype(jnp.float32)) if getattr(self.tokenizer, "text", None) else Cond()

    def _variables(self, params: PyTree, state: PyTree) -> PyTree:
        """The tokenizer's variables by collection."""
        return {"params": params[TOKENIZER], **({"state": state["tokenizer"]} if "tokenizer" in state else {})}

    def _encoded(self, variables: PyTree, images: Array, cond: Cond, ctx: Context) -> tuple[Latents, PyTree]:
        """Latents of the batch, and the task's next state."""
        learns, state = bool(self.quantizer_weight), dict(ctx.state)
        latents, changed = self.tokenizer.apply(
            variables,
            images,
            cond,
            draw=ctx.draw.named("tokenizer"),
            train=learns,
            method="encode",
            mutable=["state"],
        )
        if learns and "state" in changed:
            state["tokenizer"] = jax.lax.stop_gradient(changed["state"])
        if "usage" in state:
            ids = latents.aux["ids"] if latents.ids is None else latents.ids
            state["usage"] = usage.update(state["usage"], ids, ctx.step, self.usage_window)
        return latents, state

    def _told(self, state: PyTree, step: Array, rows: int) -> dict[str, Array]:
        """Usage and perplexity of the codes, told with every example."""
        if "usage" not in state:
            return {}
        found = usage.report(state["usage"], step, self.usage_window)
        return {name: jnp.full(rows, number, jnp.float32) for name, number in found.items()}

    def _of_codes(self, latents: Latents, rows: int) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """The codes' own terms: their sum per example, those of the batch, and all that are told."""
        terms = {name: self.quantizer_weight * term for name, term in latents.losses.items() if self.quantizer_weight}
        if "kl" in latents.aux:
            terms["kl"] = self.kl_weight * latents.aux["kl"]
        each = {name: term for name, term in terms.items() if term.ndim == 1}
        batch = {name: term for name, term in terms.items() if term.ndim == 0}
        return sum(each.values(), jnp.zeros(rows)), batch, each

    def _distance(self, images: Array, decoded: Array, frozen: PyTree) -> tuple[Array, dict[str, Array]]:
        """How far images are from the given ones, `[B]`, and its parts."""
        metrics = {"reconstruction": self.reconstruction.value(images, decoded)}
        value = metrics["reconstruction"]
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual.loss(frozen, images, decoded)
            value = value + self.perceptual_weight * metrics["perceptual"]
        return value, metrics

    def _judged(
        self, params: PyTree, ctx: Context, latents: Latents, images: Array, decoded: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The distance of the decoded images and, in its phase, what the discriminator says of them."""
        value, metrics = self._distance(images, decoded, ctx.frozen)
        judge = self.adversarial
        if judge is None or ctx.plan.phase != ADVERSARIAL:
            return value, metrics
        discriminator = params[DISCRIMINATOR]
        metrics["gan"] = judge.generator(judge.apply(discriminator, decoded))
        ratio = jnp.ones(())
        if judge.adaptive:
            fixed = jax.lax.stop_gradient(decoded)
            d_distance = jax.grad(lambda x: self._distance(images, x, ctx.frozen)[0].mean())(fixed)
            d_gan = jax.grad(lambda x: judge.generator(judge.apply(discriminator, x)).mean())(fixed)
            decode, kernel = self._by_leaf(params, ctx, self.tokenizer.last_layer, "decode", latents)
            ratio = judge.adaptive_weight(*last_layer_gradients(decode, kernel, d_distance, d_gan))
            metrics["gan_weight"] = jnp.full(len(images), ratio)
        return value + judge.generator_weight(ctx.step, ratio) * metrics["gan"], metrics

    def _by_leaf(
        self, params: PyTree, ctx: Context, path: str, method: str, given: Any
    ) -> tuple[Callable[[Array], Array], Array]:
        """`encode` or `decode` as a function of one parameter of the tokenizer, and that parameter."""
        cond, variables = self._condition(ctx.batch), self._variables(params, ctx.state)
        leaves = flatten_dict(variables["params"], sep="/")

        def call(leaf: Array) -> Array:
            tree = unflatten_dict({**leaves, path: leaf}, sep="/")
            made = self.tokenizer.apply(
                {**variables, "params": tree}, jax.lax.stop_gradient(given), cond, method=method
            )
            return _compared(made) if method == "encode" else made

        return call, leaves[path]

    def _regularised(
        self, params: PyTree, ctx: Context, images: Array, latents: Latents
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Terms that latents are held to something by, `[B]`, and what is told of them."""
        terms, told = {}, {}
        if self.next_token is not None:
            terms["next_token"] = self.next_token.weight * self.next_token.loss(params["next_token"], latents.values)
        if self.alignment is not None:
            features = self.alignment.features(ctx.frozen["alignment"], images)
            value, told = self.alignment.loss(params["alignment"], features, _compared(latents))
            ratio = self._alignment_ratio(params, ctx, images, latents, features) if self.alignment.adaptive else 1.0
            terms["alignment"] = self.alignment.weight * ratio * value
        return terms, told

    def _alignment_ratio(self, params: PyTree, ctx: Context, images: Array, latents: Latents, features: Array) -> Array:
        """How much more the distance of images moves the encoder's last layer than the alignment does; of a posterior,
        through its mean.
        """
        cond, variables = self._condition(ctx.batch), self._variables(params, ctx.state)

        def distance(values: Array) -> Array:
            decoded = self.tokenizer.apply(variables, Latents(values=values), cond, method="decode")
            return self._distance(images, decoded, ctx.frozen)[0].mean()

        held = jax.lax.stop_gradient
        d_distance = jax.grad(distance)(held(latents.values))  # codes pass gradients straight through
        d_alignment = jax.grad(lambda z: self.alignment.loss(params["alignment"], features, z)[0].mean())(
            held(_compared(latents))
        )
        encode, kernel = self._by_leaf(params, ctx, self.tokenizer.encoder_last_layer, "encode", images)
        return self.alignment.adaptive_weight(*last_layer_gradients(encode, kernel, d_distance, d_alignment))

    def _proxied(
        self, variables: PyTree, latents: Latents, images: Array, cond: Cond, frozen: PyTree
    ) -> tuple[Array, dict[str, Array], Prediction]:
        """Cross entropy of the proxy codes, and how often the most likely one is right."""
        assert self.proxy is not None
        ids = self.proxy.ids(frozen["proxy"], images)  # [B, g, g]
        logits = self.tokenizer.apply(variables, latents, cond, method="logits")  # [B, g, g, K]
        value = self.proxy.weight * proxy_cross_entropy(logits, ids)
        right = (logits.argmax(-1) == ids).astype(jnp.float32).mean((1, 2))
        return value, {"proxy": value, "proxy_accuracy": right}, Prediction(x=logits)


def _compared(latents: Latents) -> Array:
    """What a quantizer was given, or the values of continuous latents."""
    found = latents.aux.get("z", latents.values)
    assert found is not None
    return found


def _quantised(images: Array) -> Array:
    """Images in [-1, 1] as whole numbers of 0 to 255, as `maskdit.evals.image_quality.quantised`."""
    return jnp.floor(jnp.clip(127.5 * images + 128, 0, 255))
