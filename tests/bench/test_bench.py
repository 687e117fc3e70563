"""Every contender computes the same thing, verdicts follow the numbers, the document is whole. Times are never asserted."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import io
import itertools
import json
import platform

import pytest
import torch
from reference.dispatched import Dispatched
from reference.loop import example_terms, mean_term
from typer.testing import CliRunner

from noisesam.bench import CONTENDERS, MODELS, TARGETS, judge, memory, outside, plan, run, write_report
from noisesam.bench.case import RHO, Case
from noisesam.bench.contenders import BASE, BEST_VMAP, LOOP, ONE_SAM, SAM, VMAP, Contender
from noisesam.bench.profiling import alive_at_peak
from noisesam.bench.readable import SeparateAttention
from noisesam.bench.report import times_table, verdicts_table
from noisesam.bench.suite import _explained, machine_kind
from noisesam.bench.targets import Verdict
from noisesam.bench.timing import measure, quiet, relative_error, tolerance_of
from noisesam.cli import app
from noisesam.errors import InputError, MissingExtraError
from noisesam.gradients.engine import products

GRADIENTS = (ONE_SAM, LOOP, *VMAP)
NORMS = ("norms", "sgd-norms")
OPACUS = ("opacus-gradients", "opacus-ghost")


def tiny(name: str, dtype: torch.dtype) -> Case:
    case = Case.of(MODELS[name], quick=True)
    inputs = case.inputs.to(dtype) if case.inputs.is_floating_point() else case.inputs
    return dataclasses.replace(case, model=case.model.to(dtype), inputs=inputs)


def gradient_of(case: Case, contender: str) -> dict[str, torch.Tensor]:
    case.model.zero_grad(set_to_none=True)
    CONTENDERS[contender].prepare(case)()
    return {name: p.grad.clone() for name, p in case.model.named_parameters()}


def call(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("model", ["mlp", "text"])
def test_loop_vmap_and_noisesam_compute_the_gradient_of_the_twin(model, dtype, tolerance):
    # 1-SAM divides by small gradients: float32 keeps about four digits, float64 about twelve.
    case = tiny(model, dtype)
    rows = example_terms(case.model, case.inputs, case.targets, RHO)
    expected = list(mean_term(rows, "1-sam").values())
    for contender in GRADIENTS:
        found = list(gradient_of(case, contender).values())
        assert relative_error(found, expected) < tolerance, contender


def test_batch_sam_in_plain_torch_is_noisesam_s():
    case = tiny("mlp", torch.float64)
    plain, ours = (gradient_of(case, name) for name in (SAM, "sam"))
    assert relative_error(list(plain.values()), list(ours.values())) < 1e-12


@pytest.mark.parametrize("contender", [*NORMS, *OPACUS])
def test_norms_are_those_of_examples_run_alone(contender):
    case = tiny("mlp", torch.float64)
    alone = CONTENDERS[LOOP].prepare(case)()
    with quiet():  # torch warns about hooks on layers whose inputs need no gradient
        found = CONTENDERS[contender].prepare(case)()
    assert relative_error([found], [alone]) < 1e-10


@pytest.mark.parametrize("contender", OPACUS)
@pytest.mark.parametrize(
    ("model", "exchanged"), [("vit", "class token and positions"), ("text", "attention as four nn.Linear")]
)
def test_opacus_is_timed_on_transformers_with_the_norms_of_examples_run_alone(model, exchanged, contender):
    case = tiny(model, torch.float64)
    timing = measure(case, [CONTENDERS[contender]], rounds=1, slow_rounds=1)[0]
    assert timing.reason == ""
    assert timing.relative_error < 1e-10
    assert [note.startswith(exchanged) for note in timing.notes] == [True]


class Causal(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x, src_mask=torch.ones(5, 5).triu(1) * -1e9).mean(1))


def test_opacus_has_no_attention_that_reads_masks_and_is_not_timed_where_one_matters():
    case = Case(Causal(), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3))
    with quiet(), pytest.raises((InputError, ValueError), match=r"give other outputs|attn_mask"):
        CONTENDERS["opacus-ghost"].prepare(case)


@pytest.mark.parametrize("options", [{"batch_first": False}, {"dropout": 0.1}, {"bias": False}, {"add_zero_attn": True}])
def test_attention_that_cannot_be_exchanged_is_refused(options):
    with pytest.raises(InputError, match=r"nn\.MultiheadAttention with options"):
        SeparateAttention(torch.nn.MultiheadAttention(4, 2, **({"batch_first": True} | options)))


@pytest.mark.parametrize("contender", [name for name in CONTENDERS if name not in OPACUS])
def test_no_contender_moves_the_weights(contender):
    case = tiny("small-cnn", torch.float32)
    before = [p.detach().clone() for p in case.parameters]
    CONTENDERS[contender].prepare(case)()
    assert all(torch.equal(a, b) for a, b in zip(before, case.parameters, strict=True))


def test_a_contender_that_computes_something_else_is_left_out_with_the_reason():
    wrong = dataclasses.replace(CONTENDERS[BASE], name="wrong", computes="1-sam")
    timing = measure(tiny("mlp", torch.float32), [wrong], rounds=1, slow_rounds=1)[0]
    assert timing.median is None
    assert timing.reason.startswith("differs from one example at a time by")


def test_a_refused_contender_gives_way_to_its_alternative_and_says_so():
    def refuses(_):
        raise ValueError("no rule")

    mended = dataclasses.replace(
        CONTENDERS[LOOP], prepare=refuses, alternative=CONTENDERS[LOOP].prepare, alternative_words="patience"
    )
    found = measure(tiny("mlp", torch.float32), [mended], rounds=1, slow_rounds=1)[0]
    assert found.median is not None
    assert found.notes == ["timed with patience, since: ValueError: no rule"]
    refused = measure(tiny("mlp", torch.float32), [dataclasses.replace(mended, alternative=None)], rounds=1, slow_rounds=1)[0]
    assert (refused.median, refused.reason) == (None, "ValueError: no rule")
    assert (found.by_alternative, refused.by_alternative) == (True, False)


def test_the_tolerance_is_that_of_what_multiplies():
    class OnCuda(Case):
        device = property(lambda _: "cuda")

    def bound(kind: type[Case], dtype: torch.dtype, precision: str) -> float:
        case = tiny("mlp", dtype)
        return tolerance_of(kind(case.model, case.inputs, case.targets, precision))

    reduced = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert bound(OnCuda, torch.float32, "float32") == 5e-2
        torch.backends.cudnn.allow_tf32 = False
        assert bound(OnCuda, torch.float32, "float32") == 1e-2
    finally:
        torch.backends.cudnn.allow_tf32 = reduced
    assert bound(Case, torch.float32, "float32") == 1e-2
    assert bound(Case, torch.float64, "float32") == bound(OnCuda, torch.float64, "float32") == 1e-9
    assert bound(Case, torch.float32, "bfloat16") == bound(OnCuda, torch.float32, "bfloat16") == 0.25


def test_a_timed_call_follows_one_of_its_own_kind_whoever_comes_before(monkeypatch):
    called: list[str] = []

    def watched(name: str):
        def prepare(case):
            step = CONTENDERS[name].prepare(case)

            def run():
                called.append(name)
                return step()

            return run

        return dataclasses.replace(CONTENDERS[name], prepare=prepare)

    timings = measure(tiny("mlp", torch.float32), [watched(BASE), watched(LOOP), watched("norms")], rounds=3, slow_rounds=3)
    in_rounds = called[2 + 1 + 2 :]  # warmed: the slow one once, the others twice
    assert [len(timing.seconds) for timing in timings] == [3, 3, 3]
    assert [in_rounds.count(name) for name in (BASE, LOOP, "norms")] == [6, 3, 6]
    runs = [(name, len(list(group))) for name, group in itertools.groupby(in_rounds)]
    assert all(length % 2 == 0 for name, length in runs if name != LOOP)


def test_slow_contenders_run_fewer_rounds():
    chosen = [CONTENDERS[BASE], CONTENDERS[LOOP]]
    fast, slow = measure(tiny("mlp", torch.float32), chosen, rounds=6, slow_rounds=2)
    assert (len(fast.seconds), len(slow.seconds)) == (6, 2)


def test_without_opacus_its_contenders_name_the_extra(monkeypatch):
    def without(name, *arguments, **keywords):
        if name.startswith("opacus"):
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"Opacus is not installed.*noisesam\[test\]"):
        outside.opacus_ghost(tiny("mlp", torch.float32))


# ---------------------------------------------------------------------- verdicts


def verdicts(model: str, values: dict[str, float], **options) -> dict[str, str]:
    return {one.target.name: one.verdict for one in judge(model, values, **options)}


def test_verdicts_come_out_both_ways():
    good = {BASE: 1.0, SAM: 2.0, ONE_SAM: 1.3, BEST_VMAP: 160.0, "norms": 0.6, "sgd-norms": 1.2, "opacus-ghost": 1.3}
    bad = {BASE: 1.0, SAM: 2.0, ONE_SAM: 2.1, BEST_VMAP: 160.0, "norms": 1.2, "sgd-norms": 1.6, "opacus-ghost": 1.3}
    assert set(verdicts("mlp", good).values()) == {"held"}
    assert set(verdicts("mlp", bad).values()) == {"missed"}
    assert len(verdicts("mlp", good)) == 5


def test_a_bound_that_is_met_exactly_holds():
    assert verdicts("mlp", {ONE_SAM: 2.0, SAM: 2.0}) == {"1-SAM / batch SAM": "held"}
    assert verdicts("mlp", {ONE_SAM: 1.0, BEST_VMAP: 100.0}) == {"best vmap / 1-SAM": "held"}


def test_the_bound_depends_on_the_model():
    values = {ONE_SAM: 2.2, SAM: 2.0}
    assert verdicts("vit", values)["1-SAM / batch SAM"] == "held"
    assert verdicts("resnet18-groupnorm", values)["1-SAM / batch SAM"] == "missed"


def test_memory_is_judged_apart_from_time():
    assert verdicts("mlp", {ONE_SAM: 2.6, BASE: 1.0}, quantity="memory") == {"memory of 1-SAM / SGD": "missed"}
    assert verdicts("mlp", {ONE_SAM: 2.4, BASE: 1.0}, quantity="memory") == {"memory of 1-SAM / SGD": "held"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc, which other systems do not have")
def test_memory_is_read_alike_in_every_process():
    readings = [memory.growth("mlp", ONE_SAM) for _ in range(3)]
    # Whole pages and what Python holds; what glibc keeps by its own choice is several times that.
    assert max(readings) <= 1.05 * min(readings)


@pytest.mark.skipif(not products._quicker(), reason="here no product goes to oneDNN")
def test_the_code_of_onednn_is_loaded_before_memory_is_counted(monkeypatch):
    monkeypatch.setattr(products, "mkl_is_at_home", lambda: False)  # where it has all large products to itself
    with Dispatched() as calls:
        memory._load_libraries()
    assert {"mkldnn._linear_pointwise.default", "aten.convolution_backward.default"} <= calls.names


def test_what_fails_on_our_side_is_missed_and_on_the_other_side_open():
    ours = judge("mlp", {SAM: 1.0}, {ONE_SAM: "it broke"})
    assert [(one.verdict, one.measured, one.reason) for one in ours] == [("missed", None, "1-sam: it broke")]
    theirs = judge("mlp", {"norms": 1.0}, {"opacus-ghost": "refused"})
    assert [(one.verdict, one.reason) for one in theirs] == [("not measured", "opacus-ghost: refused")]


def test_every_target_names_contenders_and_models_that_exist():
    for target in TARGETS:
        assert {target.above, target.below} <= {*CONTENDERS, BEST_VMAP}
        assert set(target.models or MODELS) <= set(MODELS)
    priced = [model for target in TARGETS if (target.above, target.below) == (ONE_SAM, SAM) for model in target.models]
    assert sorted(priced) == sorted(MODELS)


# ---------------------------------------------------------------------- the document and the command


@pytest.fixture(scope="module")
def document() -> dict:
    """The whole bench on the tiny MLP, memory included."""
    return run(plan(models=["mlp"], quick=True))


def test_the_document_holds_every_contender_and_verdict(document):
    assert [row["contender"] for row in document["timings"]] == [*CONTENDERS, BEST_VMAP]
    assert all(row["median_seconds"] > 0 and row["ratio_to_sgd"] > 0 and not row["reason"] for row in document["timings"])
    assert [row["contender"] for row in document["memory"]] == [BASE, ONE_SAM]
    assert all(row["bytes"] is not None for row in document["memory"])
    expected = [one.name for one in TARGETS if one.applies_to("mlp", ("mlp",))]
    assert [row["target"] for row in document["verdicts"]] == expected
    best = min(row["median_seconds"] for row in document["timings"] if row["contender"] in VMAP)
    assert document["timings"][-1]["median_seconds"] == best


def test_every_missed_target_comes_with_the_profile_of_both_sides(document):
    sides = {one.name: (one.above, one.below) for one in TARGETS}
    for quantity, kept in (("time", "profiles"), ("memory", "peaks")):
        missed = [row for row in document["verdicts"] if row["verdict"] == "missed" and row["quantity"] == quantity]
        expected = {name for row in missed for name in sides[row["target"]]}
        form = document["timings"][-1]["notes"][0].rpartition(" ")[2]
        assert {one["contender"] for one in document[kept]} == {form if name == BEST_VMAP else name for name in expected}
    for one in document["profiles"]:
        times = [operator["ms"] for operator in one["operators"]]
        assert len(times) == 5
        assert times == sorted(times, reverse=True)


def test_the_document_names_no_place_and_no_host(document):
    import platform
    import re

    text = json.dumps(document, allow_nan=False)
    assert not re.search(r'"(/|~|[A-Z]:\\\\)', text)
    if len(platform.node()) > 3:
        assert platform.node() not in text


def test_the_files_are_the_document_and_its_tables(document, tmp_path):
    written = write_report(document, tmp_path)
    assert json.loads(written[0].read_text(encoding="utf-8")) == json.loads(json.dumps(document))
    readme = written[1].read_text(encoding="utf-8")
    table = [line for line in readme.splitlines() if line.startswith("| SGD, plain torch (ms)")]
    assert len(table) == 1
    for row in verdicts_table(document)[1]:
        assert "| " + " | ".join(row) + " |" in readme


def test_a_second_machine_stands_beside_the_first(document, tmp_path):
    write_report(document, tmp_path)
    write_report(document | {"machine_kind": "another"}, tmp_path)
    (tmp_path / "family-another.json").write_text("{}", encoding="utf-8")  # of another kind, with a page of its own
    write_report(document | {"machine_kind": "another"}, tmp_path)
    headings = [line for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert headings == sorted(["## another", f"## {document['machine_kind']}"])


def test_the_unit_row_is_in_milliseconds_and_the_others_in_sgd(document):
    headings, rows = times_table(document, (1, "float32"))
    cells = {row[0]: row[1] for row in rows}
    assert headings == ("ratio to SGD", "mlp")
    sgd = document["timings"][0]
    assert float(cells["SGD, plain torch (ms)"]) == pytest.approx(1000 * sgd["median_seconds"], rel=0.05)
    ratio = next(row["ratio_to_sgd"] for row in document["timings"] if row["contender"] == LOOP)
    assert float(cells["1-SAM one by one"]) == pytest.approx(ratio, rel=0.05)


def test_json_and_csv_are_complete_and_the_table_fits_80_columns(monkeypatch, document):
    monkeypatch.setattr("noisesam.bench.run", lambda *_: document)
    monkeypatch.setattr("noisesam.cli.console.out._width", 80)
    arguments = ("--models", "mlp", "--quick")
    assert json.loads(call(*arguments, "--json").stdout)["timings"][0]["contender"] == BASE
    rows = list(csv.DictReader(io.StringIO(call(*arguments, "--csv").stdout)))
    assert [row["contender"] for row in rows] == [*CONTENDERS, BEST_VMAP]
    shown = call(*arguments).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "held" in shown or "missed" in shown


def test_the_table_of_all_models_fits_80_columns(monkeypatch, document):
    models = [
        {"model": one.name, "heading": one.heading, "title": one.title, "batch": 1, "parameters": 1} for one in MODELS.values()
    ]
    both = [{"threads": threads, "precision": "float32"} for threads in (1, 2)]
    copies = {
        part: [row | {"model": name, "threads": n} for name in MODELS for n in (1, 2) for row in document[part]]
        for part in ("timings", "memory", "verdicts")
    }
    wide = document | copies | {"models": models, "options": document["options"] | {"settings": both}}
    monkeypatch.setattr("noisesam.bench.run", lambda *_: wide)
    monkeypatch.setattr("noisesam.cli.console.out._width", 80)
    shown = call("--quick").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def test_the_command_measures_and_writes(tmp_path):
    result = call(
        "--models", "mlp", "--contenders", "1-sam,torch-sam", "--quick", "--rounds", "1", "--no-memory", "--out", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", *(path.name for path in tmp_path.glob("*-quick.json"))}
    assert "1-SAM / batch SAM" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--models", "mlpp"], "Did you mean 'mlp'?"),
        (["--contenders", "vmap"], "Unknown contender 'vmap'"),
        (["--threads", "two"], "Type --threads 1,2"),
        (["--threads", "0"], "threads=0"),
        (["--device", "tpu"], "one of: cpu, cuda"),
        (["--json", "--csv"], "Leave one out"),
    ],
)
def test_a_wrong_call_exits_with_two_and_says_what_to_type(arguments, text):
    result = call("--quick", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(InputError, match="Use --device cpu"):
        plan(device="cuda")


def test_two_processors_have_two_names():
    cpu = {"gpu": None, "cpu": "AMD EPYC", "cpu_count": 2}
    assert machine_kind(cpu) == "amd-epyc-2-cores"
    assert machine_kind(cpu | {"gpu": "NVIDIA H200"}) == "nvidia-h200"


def test_units_count_the_calls_that_are_told():
    told: list[str] = []
    planned = plan(models=["mlp"], contenders=["1-sam", "loop"], rounds=2, quick=True, measures_memory=False)
    run(planned, told.append)
    assert len(told) == planned.units


def test_what_is_alive_at_the_peak_is_counted_to_the_byte():
    def prepare(case):
        def step():
            kept = torch.ones(1000) * 2  # 4,000 bytes of mul; those of ones are gone when the next tensor comes
            peak = torch.cat([kept, kept])  # 8,000 bytes of cat beside them
            del kept
            return peak[:3].exp()  # 12 bytes, after the peak

        return step

    found = alive_at_peak(tiny("mlp", torch.float32), Contender("x", "x", "x", prepare))
    assert [(one["operator"], one["bytes"]) for one in found["operators"]] == [("aten.cat", 8000), ("aten.mul", 4000)]
    assert (found["bytes"], found["forward"], found["reverse"], found["at"]) == (12000, 12000, 0, "aten.cat forward")


def test_what_the_graph_alone_keeps_is_alive_and_what_the_reverse_pass_makes_is_told_apart():
    def prepare(case):
        leaf = torch.ones(1000, requires_grad=True)

        def step():
            loss = leaf.exp().cos().sum()  # exp and, as the input of cos, its result: one tensor of 4,000 bytes
            leaf.grad = None
            loss.backward()

        return step

    found = alive_at_peak(tiny("mlp", torch.float32), Contender("x", "x", "x", prepare))
    # The reverse pass of cos multiplies by -sin: at least sin and its negative are alive at once.
    assert found["forward"] == 4000 + 4 + 4  # the result of exp, kept by the graph alone; the loss; the 1 it starts from
    assert found["reverse"] >= 2 * 4000
    assert found["at"].endswith(" reverse")
    assert sum(one["bytes"] for one in found["operators"]) <= found["bytes"] == found["forward"] + found["reverse"]


def test_per_example_weight_gradients_are_what_stands_out_at_the_peak_of_1_sam():
    case = tiny("text", torch.float32)
    ours, plain = (alive_at_peak(case, CONTENDERS[name])["reverse"] for name in (ONE_SAM, BASE))
    assert ours > plain


def test_a_contender_is_profiled_as_it_was_timed():
    name = "opacus-ghost"
    target = next(one for one in TARGETS if one.below == name)
    missed = [Verdict(target, "mlp", 0.9, "missed")]
    assert [one.name for one in _explained(missed, {})] == ["norms", name]
    swapped = _explained(missed, {}, {name})[1]
    assert swapped.prepare is CONTENDERS[name].alternative
    vmap = next(one for one in TARGETS if one.above == BEST_VMAP)
    assert [one.name for one in _explained([Verdict(vmap, "mlp", 3.0, "missed")], {BEST_VMAP: VMAP[1]})] == [ONE_SAM, VMAP[1]]
    unmeasured = [Verdict(target, "mlp", None, "missed", "it broke")]
    assert _explained(unmeasured, {}) == []


def test_a_missed_memory_is_shown_by_pass_and_operator(document, tmp_path):
    rows = [
        {"operator": "aten.bmm", "pass": "reverse", "bytes": 54_000_000, "share": 0.6},
        {"operator": "aten.relu", "pass": "forward", "bytes": 36_000_000, "share": 0.4},
    ]
    peak = {"model": "mlp", "precision": "float32", "contender": ONE_SAM, "bytes": 90_000_000, "forward": 36_000_000}
    peak |= {"reverse": 54_000_000, "at": "aten.bmm reverse", "operators": rows}
    readme = write_report(document | {"peaks": [peak]}, tmp_path)[1].read_text(encoding="utf-8")
    line = (
        "| mlp | 1-sam | 90.0 MB | 36.0 MB | 54.0 MB | aten.bmm reverse | aten.bmm (reverse) 54.0 MB (60%), aten.relu (forward)"
    )
    assert line in readme
