"""Everything that takes a path takes one in a bucket. A process of its own: TensorStore looks for buckets once."""

import textwrap

import pytest

from tests import several
from tests.tiny import SMALL

SNIPPET = textwrap.dedent(
    """
    import io, json, sys
    from tests import bucket
    bucket.serve()

    import numpy as np
    import maskdit
    from maskdit.cli import main

    settings, run = sys.argv[1:], "gs://bucket/runs/one"
    mine = "from maskdit import config\\n\\ndef get_config(v=''): return config.load('maskdit_emoji:' + v)"
    bucket.put("bucket/mine.py", mine.encode())
    train = ["train", "--config", "gs://bucket/mine.py:smoke", "--workdir", run, *settings]
    assert main([*train, "--config.steps=2", "--profile", "2:1"]) == 0
    assert main([*train, "--config.steps=4"]) == 0  # goes on
    there = {name.removeprefix("bucket/runs/one/").split("/")[0] for name in bucket.OBJECTS}
    assert there >= {"config.json", "metrics.jsonl", "checkpoints", "frozen", "tensorboard", "profile"}, there
    assert there >= {"loss.png", "samples.png"}, there
    records = [json.loads(line) for line in bucket.OBJECTS["bucket/runs/one/metrics.jsonl"].splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    where = ["--npz", "gs://bucket/images.npz", "--out", "gs://bucket/grid.png", "--num", "101", "--steps", "1"]
    assert main(["sample", run, *where]) == 0  # drawn in parts
    images = np.load(io.BytesIO(bucket.OBJECTS["bucket/images.npz"]))["arr_0"]
    assert not any(".parts" in name for name in bucket.OBJECTS)
    assert bucket.OBJECTS["bucket/grid.png"].startswith(b"\\x89PNG")
    model = maskdit.load(run)
    assert model.step == 4
    maskdit.save(model, "gs://bucket/model.npz")
    again = maskdit.load("gs://bucket/model.npz")
    assert np.abs(again.sample(count=2, steps=1).astype(int) - images[:2]).max() <= 1
    assert main(["evaluate", run, "--metrics", "fd,labels", "--num", "8", "--steps", "1"]) == 0
    kept = json.loads(bucket.OBJECTS["bucket/runs/one/evaluation/metrics.json"])
    left = [name for name in bucket.OBJECTS if "/evaluation/progress/" in name]
    assert len(left) == 1 and "reference-" in left[0] and kept["metrics"].keys() > {"fd"}
    assert (kept["step"], kept["ema"], again.step, again.ema) == (4, model.ema, 4, model.ema)
    print("all there")
    """
)


@pytest.mark.slow
def test_a_run_lives_in_a_bucket():
    settings = {**SMALL, "log.tensorboard": True, "evaluation.images": 4, "checkpoints.every": 2}
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    (ended,) = several.run(["-c", SNIPPET, *overrides], count=1, devices=1)
    assert ended.code == 0 and "all there" in ended.said, ended.said[-4000:]
