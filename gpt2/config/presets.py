"""The named runs, as data.

Built in notebooks 12 and 14 to 17.

Sources: the lecture (build-nanogpt), Train GPT-2, llm.c's scripts, modded-nanogpt's eighth record (2024-11-03, with
the bf16 weights of its tenth), Languini's GPT baseline (arXiv 2309.11197), gpt-oss (arXiv 2508.10925), EDM2 (arXiv
2312.02696).
"""

from dataclasses import replace
from typing import Any

from gpt2.config.run import Data, Eval, Languini, Log, Model, Optim, Run, Schedule, System
from gpt2.modern.parts import Parts

MUON = Optim(kind="muon", lr=0.02, embedding_lr=0.005, vector_lr=0.005, weight_decay=0.0)  # for GPT-2's own parts
STORIES = Data(shards="data/stories-2048", batch_tokens=2048, seed=1)


def _llmc(
    name: str,
    model: str,
    shards: str,
    steps: int,
    lr: float,
    save_every: int,
    batch: int = 524_288,
    final: float = 0.0,
    val_tokens: int = 10_485_760,
    sample_every: int = 20_000,
    sample_tokens: int = 144,
) -> Run:
    """A run of llm.c's scripts, which keep every checkpoint and write one sample from an empty prompt."""
    return Run(
        model=Model(init=model),
        data=Data(shards=f"data/{shards}", batch_tokens=batch, seed=42),
        optim=Optim(lr=lr),
        schedule=Schedule(steps=steps, warmup=700, final_fraction=final),
        eval=Eval(
            tokens=val_tokens,
            hellaswag_every=250,
            sample_every=sample_every,
            samples=1,
            sample_tokens=sample_tokens,
            prompt="",
        ),
        log=Log(folder=f"runs/{name}", save_every=save_every, keep_every=save_every),
        system=System(zero=1),
    )


def _languini(
    size: str,
    layers: int,
    width: int,
    heads: int,
    head_size: int,
    batch: int = 128,
    hours: float | None = None,
    speed: float | None = None,
) -> Run:
    """A run of Languini's GPT baseline. xl has no published throughput; its steps are those of small's 6 hours."""
    return Run(
        model=Model(init="d12", vocab_size=16_384, block_size=512, n_layer=layers, n_head=heads, n_embd=width),
        parts=Parts(head_size=head_size, scale_embedding=True, init="languini", tied=False),
        data=Data(shards="data/books-16384", batch_tokens=512 * batch),
        optim=Optim(lr=6e-4, weight_decay=0.0, clip=0.0),
        schedule=Schedule(steps=18_265, kind="languini", warmup=200, final_fraction=0.01),
        eval=Eval(every=500, tokens=4_096_000, last_n=128, accuracy=True, sample_every=1000, prompt="The"),
        log=Log(folder=f"runs/languini-{size}", save_every=1000, norms_every=1000),
        system=System(seed=0),
        languini=Languini(hours=hours, tokens_per_second=speed),
    )


GPT2 = Parts()
SPEEDRUN = Parts(
    norm="rms-plain",
    norm_embedding=True,
    position="rotary",
    bias=False,
    qk_norm=True,
    mlp="relu2",
    init="zero",
    tied=False,
)
GPT_OSS = Parts(
    norm="rms",
    position="rotary",
    rotary_base=150_000.0,
    kv_heads=3,
    windows=(128, "full"),
    sinks=True,
    mlp="swiglu-clamped",
    mlp_width=768,
    experts=8,
    experts_per_token=2,
    tied=False,
)
MAGNITUDE = Parts(
    norm="rms-plain",
    position="rotary",
    bias=False,
    qk_norm=True,
    mlp="mp-silu",
    normalised_weights=True,
    residual="magnitude",
    gain=True,
    tied=False,
)


def _demo(name: str, optim: Optim, schedule: Schedule, parts: Parts = GPT2, **system: Any) -> Run:
    """A sibling of a family's run for a laptop: the same parts, small, on the stories."""
    return Run(
        model=Model(init="d6", vocab_size=2048, block_size=128, n_layer=4, n_head=4, n_embd=128),
        parts=parts,
        data=STORIES,
        optim=optim,
        schedule=schedule,
        log=Log(folder=f"runs/{name}", save_every=500),
        eval=Eval(
            every=250, tokens=65_536, sample_every=1000, samples=1, sample_tokens=96, prompt="The old man looked at"
        ),
        system=System(**system),
    )


_GPT3 = _llmc("gpt3-125m", "gpt3:c768", "fineweb-100b", steps=572_204, lr=6e-4, save_every=10_000, final=0.1)

# name → (what it is: model, data, tokens, FLOPs, time or result; the run). The first is the default.
PRESETS: dict[str, tuple[str, Run]] = {
    "gpt2-124m": (
        "GPT-2 124M on 10 B tokens of FineWeb-Edu: 8.5e18 FLOPs; 2.6 h at Train GPT-2's 1.06 M tokens/s on 8 A100",
        Run(eval=Eval(hellaswag_every=250)),
    ),
    "train-gpt-2": (
        "Train GPT-2's script, GPT-2 124M on FineWeb-Edu: 1.05 B tokens, 9.0e17 FLOPs; 493 ms per step on 8 A100",
        Run(
            optim=Optim(lr=1.8e-3),
            schedule=Schedule(steps=2000, warmup=100),
            eval=Eval(tokens=2**25, sample_every=100),
            log=Log(folder="runs/train-gpt-2"),
            system=System(micro_batch=16),
        ),
    ),
    "demo": (
        "1.1 M parameters on the stories: 3.1 M tokens, 2.2e13 FLOPs; two minutes on two CPU cores",
        _demo("demo", MUON, Schedule(steps=1500, kind="trapezoid", warmup=0, final_fraction=0.0, plateau=0.4)),
    ),
    "shakespeare": (
        "nanoGPT's CPU example, by the byte: 0.205 M tokens, 1.1e12 FLOPs; val loss 1.82, 14 to 18 s on two CPU cores",
        Run(
            model=Model(init="d6", vocab_size=257, block_size=64, n_layer=4, n_head=4, n_embd=128),
            parts=SPEEDRUN,
            data=Data(shards="data/shakespeare", batch_tokens=2048, seed=1),
            optim=Optim(
                kind="muon", lr=0.05, momentum=0.85, embedding_lr=0.2, head_lr=0.01, weight_decay=0.0, clip=0.0
            ),
            schedule=Schedule(steps=100, kind="trapezoid", warmup=0, final_fraction=0.0, plateau=0.4),
            eval=Eval(every=50, tokens=16_384, samples=1, sample_tokens=64, prompt="ROMEO:"),
            log=Log(folder="runs/shakespeare", save_every=0),
        ),
    ),
    "novels": (
        "GPT-2, 6 layers, 320 wide, on 107 English novels: 60.3 M tokens, 3.5e15 FLOPs; 2.1 h on two CPU cores",
        Run(
            model=Model(init="d6", vocab_size=4096, block_size=256, n_layer=6, n_head=5, n_embd=320),
            data=Data(shards="data/novels-4096", batch_tokens=16_384, seed=1),
            optim=MUON,
            schedule=Schedule(steps=3680, kind="trapezoid", warmup=20, final_fraction=0.0, plateau=0.4),
            eval=Eval(
                every=250,
                tokens=131_072,
                sample_every=500,
                samples=2,
                sample_tokens=64,
                prompt="The old man looked at",
            ),
            log=Log(folder="runs/novels"),
        ),
    ),
    "llmc-124m": (
        "llm.c's GPT-2 124M on FineWeb: 9.9 B tokens, 8.5e18 FLOPs; published val loss 3.29, HellaSwag 29.9 %",
        _llmc("llmc-124m", "d12", "fineweb", steps=18_865, lr=6e-4, save_every=5_000),
    ),
    "llmc-350m": (
        "llm.c's GPT-2 350M on FineWeb: 31.5 B tokens, 7.6e19 FLOPs; published 13.7 h on 8 A100",
        _llmc("llmc-350m", "d24", "fineweb-100b", steps=60_000, lr=3e-4, save_every=2_000, sample_every=100_000),
    ),
    "llmc-774m": (
        "llm.c's GPT-2 774M on FineWeb: 150 B tokens, 7.8e20 FLOPs; published 135 h on 8 A100",
        _llmc(
            "llmc-774m",
            "d36",
            "fineweb-100b",
            steps=286_102,
            lr=2.5e-4,
            save_every=4_000,
            val_tokens=5_242_880,
            sample_every=300_000,
        ),
    ),
    "llmc-1558m": (
        "llm.c's GPT-2 1558M on FineWeb-Edu: 33.6 B tokens, 3.4e20 FLOPs; published 24 h on 8 H100",
        _llmc(
            "llmc-1558m",
            "d48",
            "fineweb-edu-100b",
            steps=32_000,
            lr=6e-4,
            save_every=2_000,
            batch=1_048_576,
            final=0.1,
            val_tokens=2_621_440,
            sample_every=300_000,
            sample_tokens=384,
        ),
    ),
    "gpt3-125m": (
        "llm.c's GPT-3 125M, T 2048, on FineWeb: 300 B tokens, 2.9e20 FLOPs; steps with an outlying loss are skipped",
        replace(
            _GPT3,
            optim=replace(_GPT3.optim, skip_loss_z=7.0, skip_norm_z=7.0),
            log=replace(_GPT3.log, keep=5, keep_every=50_000),
        ),
    ),
    "llmc-demo": (
        "llmc-124m's sibling for a laptop: 4.1 M tokens of the stories, 2.9e13 FLOPs",
        _demo("llmc-demo", Optim(lr=5e-3), Schedule(steps=2000, warmup=100, final_fraction=0.0), zero=1),
    ),
    "speedrun": (
        "modded-nanogpt's checkpoint 8 on FineWeb: 2.4 B tokens, 2.1e18 FLOPs; val loss 3.28 in 10.8 min on 8 H100",
        Run(
            model=Model(init="d12", n_head=6),
            parts=SPEEDRUN,
            data=Data(shards="data/fineweb10B-gpt2"),
            optim=Optim(kind="muon", lr=0.02, embedding_lr=0.3, head_lr=0.002, weight_decay=0.0, clip=0.0),
            schedule=Schedule(steps=4578, kind="trapezoid", warmup=0, final_fraction=0.0, plateau=3270 / 4578),
            eval=Eval(every=125, sample_every=0),
            log=Log(folder="runs/speedrun", save_every=1000),
            system=System(weights="bf16-cast"),
        ),
    ),
    "speedrun-demo": (
        "speedrun's sibling for a laptop, weights in fp32: 4.1 M tokens of the stories, 2.9e13 FLOPs",
        _demo(
            "speedrun-demo",
            Optim(kind="muon", lr=0.02, embedding_lr=0.3, head_lr=0.002, weight_decay=0.0, clip=0.0),
            Schedule(steps=2000, kind="trapezoid", warmup=0, final_fraction=0.0, plateau=0.7),
            SPEEDRUN,
        ),
    ),
    "languini-mini": (
        "Languini's mini, 4 layers, 512 wide, on books: 5.2 B tokens, 6.2e17 FLOPs; 6 h of an RTX 3090",
        _languini("mini", layers=4, width=512, heads=8, head_size=32, hours=6.0, speed=238_719.0),
    ),
    "languini-tiny": (
        "Languini's tiny, 4 layers, 768 wide, on books: 3.1 B tokens, 8.1e17 FLOPs; 6 h of an RTX 3090",
        _languini("tiny", layers=4, width=768, heads=12, head_size=64, hours=6.0, speed=141_864.0),
    ),
    "languini-small": (
        "Languini's small, 12 layers, 768 wide, on books: 1.2 B tokens, 7.7e17 FLOPs; 6 h of an RTX 3090",
        _languini("small", layers=12, width=768, heads=12, head_size=64, batch=128, hours=6.0, speed=55_416.0),
    ),
    "languini-medium": (
        "Languini's medium, 24 layers, 1024 wide, on books: 2.9 B tokens, 5.9e18 FLOPs; 48 h of an RTX 3090",
        _languini("medium", layers=24, width=1024, heads=16, head_size=64, batch=256, hours=48.0, speed=16_618.0),
    ),
    "languini-large": (
        "Languini's large, 24 layers, 1536 wide, on books: 152 M tokens, 6.8e17 FLOPs; 6 h of an RTX 3090",
        _languini("large", layers=24, width=1536, heads=16, head_size=96, hours=6.0, speed=7_058.0),
    ),
    "languini-xl": (
        "Languini's xl, 24 layers, 2048 wide, on books: 1.2 B tokens, 1.1e19 FLOPs; in small's steps",
        _languini("xl", layers=24, width=2048, heads=24, head_size=128),
    ),
    "languini-demo": (
        "languini-small's sibling for a laptop: 4.1 M tokens of the stories, 2.9e13 FLOPs",
        _demo(
            "languini-demo",
            Optim(lr=3e-3, weight_decay=0.0, clip=0.0),
            Schedule(steps=2000, kind="languini", warmup=100, final_fraction=0.01),
            Parts(scale_embedding=True, init="languini", tied=False),
        ),
    ),
    "gpt-oss-mini": (
        "gpt-oss's parts at GPT-2's size, 2 of 8 experts per token, on FineWeb-Edu: 10 B tokens, 6.6e18 FLOPs",
        Run(
            parts=GPT_OSS,
            eval=Eval(hellaswag_every=250),
            log=Log(folder="runs/gpt-oss-mini"),
            system=System(zero=1),  # compiled block by block: DDP cuts a whole graph where FlexAttention may not be cut
        ),
    ),
    "gpt-oss-demo": (
        "gpt-oss-mini's sibling for a laptop: 4.1 M tokens of the stories, 2.2e13 FLOPs",
        _demo(
            "gpt-oss-demo",
            Optim(lr=3e-3),
            Schedule(steps=2000, warmup=100, final_fraction=0.0),
            replace(GPT_OSS, kv_heads=1, windows=(32, "full"), mlp_width=128, experts=4),
        ),
    ),
    "magnitude": (
        "GPT-2 with EDM2's magnitude preservation in every part, on FineWeb-Edu: 10 B tokens, 8.5e18 FLOPs",
        Run(
            parts=MAGNITUDE,
            optim=Optim(lr=1e-2, weight_decay=0.0),
            schedule=Schedule(kind="inverse-sqrt", plateau=0.1),
            eval=Eval(hellaswag_every=250),
            log=Log(folder="runs/magnitude"),
        ),
    ),
    "magnitude-demo": (
        "magnitude's sibling for a laptop: 4.1 M tokens of the stories, 2.9e13 FLOPs",
        _demo(
            "magnitude-demo",
            Optim(lr=2e-2, weight_decay=0.0),
            Schedule(steps=2000, kind="inverse-sqrt", warmup=100, plateau=0.1),
            MAGNITUDE,
        ),
    ),
}
