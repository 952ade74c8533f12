"""Compiled engines run only if they were built here, or the user vouches for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.bundle.folder import EngineBundle, read_bundle
from refusion_edge.bundle.manifest import MANIFEST, PLAN, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.bundle.trust import is_trusted, require_trusted, trust, trust_path, trusted_file
from refusion_edge.errors import BundleError
from refusion_edge.export.build import build
from refusion_edge.fuser import open_bundle
from refusion_edge.images.io import write_image
from refusion_edge.stream.fused_stream import open_stream
from tests.backends.tensorrt.conftest import SPEC
from tests.raising import raises

Cli = Callable[..., tuple[int, str, str]]


def built(name: str = "x") -> EngineBundle:
    return build(replace(SPEC, output=Path(name))).bundle


def forget() -> None:
    """Make this machine another one, which has built nothing."""
    trusted_file().unlink()


@pytest.mark.usefixtures("device")
def test_an_engine_that_was_built_here_runs() -> None:
    bundle = built()
    assert is_trusted(bundle.manifest.files[PLAN])
    assert trusted_file().stat().st_mode & 0o777 == 0o600
    open_bundle(read_bundle("x")).__exit__(None, None, None)
    lines = trusted_file().read_text().splitlines()
    built("y")
    assert len(trusted_file().read_text().splitlines()) == len(lines) == 1


@pytest.mark.usefixtures("device")
def test_an_engine_from_elsewhere_does_not_run_until_the_user_vouches_for_it() -> None:
    digest = built().manifest.files[PLAN]
    forget()
    with raises(BundleError, PLAN, digest[:12], remedy=("--trust", "build"), got=digest):
        open_bundle(read_bundle("x"))
    trust_path("x")
    open_bundle(read_bundle("x")).__exit__(None, None, None)
    assert "--trust" in trusted_file().read_text()
    # For this engine, and no other one.
    Path("x", PLAN).write_bytes(Path("x", PLAN).read_bytes() + b"\0")
    with raises(BundleError, PLAN):
        trust_path("x")


@pytest.mark.usefixtures("device")
def test_a_stream_of_a_program_trusts_the_engine_too() -> None:
    built()
    forget()
    views = [f"test://{side}?width=32&height=24&live=0&frames=3" for side in ("ir", "vis")]
    with raises(BundleError, remedy="--trust"):
        open_stream(*views, bundle="x", outputs="null://").run()
    stream = open_stream(*views, bundle="x", outputs="null://", trust=True)
    stream.run()
    assert stream.count == 3


@pytest.mark.usefixtures("device")
def test_a_cached_engine_from_elsewhere_is_built_again() -> None:
    built()
    forget()
    report = build(replace(SPEC, output=Path("y")))
    assert not report.cached
    assert any("rebuilt" in remark for remark in report.remarks)
    assert build(replace(SPEC, output=Path("z"))).cached


@pytest.mark.usefixtures("device")
def test_a_compiled_engine_under_the_name_of_data_needs_trust_too() -> None:
    built()
    forget()
    plan = Path("x", PLAN).read_bytes()
    Path("x", WEIGHTS).write_bytes(plan)
    manifest = json.loads(Path("x", MANIFEST).read_text())
    digest = manifest["files"][PLAN]
    manifest["engine"], manifest["weights_sha256"], manifest["files"][WEIGHTS] = WEIGHTS, digest, digest
    Path("x", MANIFEST).write_text(json.dumps(manifest))
    with raises(BundleError, WEIGHTS, got=digest, remedy="--trust"):
        open_bundle(read_bundle("x"))


def test_models_are_data_and_need_no_trust() -> None:
    bundle = build(BuildSpec("ir_vis", "fp32", "onnxruntime", size_hw=(20, 40), output=Path("x"))).bundle
    require_trusted(bundle)
    trust(bundle, "nothing to trust")
    assert not trusted_file().exists()


@pytest.mark.usefixtures("device")
def test_a_list_that_others_can_write_is_worth_nothing() -> None:
    bundle = built()
    trusted_file().chmod(0o666)
    with raises(BundleError, trusted_file(), remedy="chmod"):
        require_trusted(bundle)


@pytest.mark.usefixtures("device")
def test_a_list_that_cannot_be_written_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSION_EDGE_TRUSTED", "/dev/null/trusted")
    report = build(SPEC)
    assert any("--trust" in remark for remark in report.remarks)


@pytest.mark.usefixtures("device")
def test_the_command_line_asks_for_trust_once(run_cli: Cli) -> None:
    built()
    forget()
    for name in "ab":
        write_image(f"{name}.png", np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(24, 32))
    words = ("fuse", "a.png", "b.png", "-o", "c.png", "--overwrite", "--bundle", "x")
    code, _, err = run_cli(*words)
    assert code == BundleError.exit_code
    assert "--trust" in err
    assert not Path("c.png").exists()
    assert run_cli(*words, "--trust")[0] == 0
    assert run_cli(*words)[0] == 0
    forget()
    assert run_cli("verify", "x")[0] == BundleError.exit_code
    assert run_cli("verify", "x", "--trust")[0] == 0
