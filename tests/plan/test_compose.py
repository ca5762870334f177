"""From command line to points: axes, overrides, and errors at the door."""

import shutil
import time

import pytest

from sweep.base.config import CONF, ConfigError, build
from sweep.base.options import ConfigPath
from sweep.drive.preflight import fetch_obstacle, surroundings
from sweep.plan.axes import PlanSpec
from sweep.plan.command_line import parse_command_line
from sweep.plan.compose import compose_run
from sweep.plan.planning import make_plan


def points(**keys):
    return list(PlanSpec(**keys).expand(chosen={}))


def composed(*arguments, hardware="cpu"):
    return compose_run([*arguments, "cluster=inline", "tracking=none"], lambda cluster: hardware)


def test_a_grid_is_crossed_and_takes_hydras_grammar():
    assert points(grid={"backend": ["a", "b"], "load.batch_size": "range(1,4)"}) == [
        {"backend": backend, "load.batch_size": size} for backend in "ab" for size in (1, 2, 3)
    ]


def test_zipped_axes_are_walked_in_step():
    zipped = points(zip={"workload.input_tokens": [1, 2], "workload.output_tokens": [3, 4]})
    assert zipped == [
        {"workload.input_tokens": 1, "workload.output_tokens": 3},
        {"workload.input_tokens": 2, "workload.output_tokens": 4},
    ]
    with pytest.raises(ConfigError, match="must have equally many values"):
        points(zip={"a": [1, 2], "b": [1]})


def test_ladder_steps_add_up_and_know_their_parent():
    ladder = [
        {"step": "base", "set": {"backend.flags.x": 1}},
        {"step": "fp8", "set": {"backend.flags.kv": "fp8"}},
        {"step": "wide", "parent": "base", "set": {"backend.flags.x": 2}},
    ]
    assert points(ladder=ladder) == [
        {"ladder": "base", "ladder_parent": None, "backend.flags.x": 1},
        {"ladder": "fp8", "ladder_parent": "base", "backend.flags.x": 1, "backend.flags.kv": "fp8"},
        {"ladder": "wide", "ladder_parent": "base", "backend.flags.x": 2},
    ]
    with pytest.raises(ConfigError, match=r"ladder\.b\.parent=z"):
        points(ladder=[{"step": "a"}, {"step": "b", "parent": "z"}])


def test_when_limits_an_axis_and_equal_points_are_one():
    limited = points(
        grid={"backend": ["vllm", "hf"], "load.batch_size": [1, 2]}, when={"load.batch_size": {"backend": "vllm"}}
    )
    assert limited == [
        {"backend": "vllm", "load.batch_size": 1},
        {"backend": "vllm", "load.batch_size": 2},
        {"backend": "hf"},
    ]


def test_exclude_drops_points():
    left = points(grid={"backend": ["a", "b"], "n": [1, 2, 3]}, exclude=[{"backend": "a", "n": [2, 3]}])
    assert left == [{"backend": "a", "n": 1}, *({"backend": "b", "n": n} for n in (1, 2, 3))]


def test_an_empty_axis_is_refused():
    with pytest.raises(ConfigError, match=r"load\.batch_size=\[\]"):
        points(grid={"load.batch_size": []})


def test_command_line_separates_scalars_from_axes():
    line = parse_command_line(["+experiment=x", "load.batch_size=1,8", "backend.flags.max-num-seqs=256", "seed=3"])
    assert line.experiment == "x"
    assert line.axes == {"load.batch_size": [1, 8]}
    assert line.scalars == {"backend.flags.max-num-seqs": 256, "seed": 3}


def test_the_published_form_is_kept_where_there_is_a_gpu():
    composition = composed("+experiment=throughput_bound", hardware="l4")
    assert not composition.replaced
    assert {point["model"]["name"] for point in composition.points} == {"llama-2-7b-chat"}
    assert {point["load"]["batch_size"] for point in composition.points} == {1, 2, 4, 8, 16, 32, 64, 128}
    assert {point["backend"]["name"] for point in composition.points} == {"transformers", "vllm", "tgi"}


def test_without_a_gpu_the_same_line_is_shorter_and_says_so():
    composition = composed("+experiment=throughput_bound")
    assert len(composition.points) == 3 * 3
    assert any("smollm2 instead of llama-2-7b-chat" in text for text in composition.replaced)
    assert any("ctranslate2 instead of transformers, vllm, tgi" in text for text in composition.replaced)
    assert {point["model"]["name"] for point in composition.points} == {"smollm2"}


def test_the_command_line_goes_before_the_experiment_and_its_form_without_gpu():
    composition = composed("+experiment=throughput_bound", "load.batch_size=2,3", "backend=vllm", "model=tiny-llama")
    assert {point["load"]["batch_size"] for point in composition.points} == {2, 3}
    assert {point["backend"]["name"] for point in composition.points} == {"vllm"}
    assert {point["model"]["name"] for point in composition.points} == {"tiny-llama"}


def test_a_published_form_replaces_what_the_user_did_not_type(experiment):
    text = "replicates: 3\npublished: {replicates: 1, workload.num_requests: 60}"
    assert experiment(text).settings.replicates == 3
    published = experiment(f"form: published\n{text}", hardware="l4")
    assert published.settings.replicates == 1
    assert published.points[0]["workload"]["num_requests"] == 60
    assert published.replaced == []
    with pytest.raises(ConfigError, match="form=published: the experiment has no separate published form"):
        composed("form=published")
    with pytest.raises(ConfigError, match="form=published: no GPU here"):
        experiment(f"form: published\n{text}\nwithout_gpu: {{replicates: 2}}")


def test_a_flag_that_is_not_in_the_yaml_passes_through():
    composition = composed("backend=vllm", "backend.flags.max-num-seqs=7")
    assert composition.points[0]["backend"]["flags"]["max-num-seqs"] == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["not_as_published={}"], "key=not_as_published: this key was removed in 0.2.0; write study_differences"),
        (["replicates=0"], "replicates=0: .*greater than"),
        (["seed=1,2"], "seed=1,2: expected one value"),
        (["load.batch_size"], "load.batch_size: expected key=value"),
        (["model@x=tiny-llama"], r"model@x=tiny-llama: a package \(@x\) is not supported"),
        (["hardware.price_per_hour=-1"], r"hardware\.price_per_hour=-1"),
    ],
)
def test_mistakes_are_one_line_naming_key_value_and_what_is_allowed(arguments, said):
    with pytest.raises(ConfigError, match=said) as caught:
        composed(*arguments)
    assert "\n" not in str(caught.value)


def slots_of(*arguments):
    """Each backend's `slots`, as composed: None where it has no such key."""
    found = {}
    for point in composed(*arguments).points:
        found.setdefault(point["backend"]["name"], set()).add(point["backend"].get("slots"))
    return found


def test_a_value_for_an_axis_of_some_points_is_set_in_those_alone():
    assert slots_of("+experiment=completion_batches", "backend.slots=8") == {
        **{name: {None} for name in slots_of("+experiment=completion_batches")},
        "llamacpp": {8},
    }
    where = "when={backend.slots: {backend: [llamacpp]}}"
    assert slots_of("backend=vllm,llamacpp", "backend.slots=8", where) == {"vllm": {None}, "llamacpp": {8}}


def test_a_key_of_some_backends_is_refused_with_the_words_that_set_it_for_those():
    for value in ("8", "8,16"):
        line = ["+experiment=completion_batches", "backend=vllm,llamacpp", f"backend.cpu_kv_cache_gib={value}"]
        with pytest.raises(ConfigError, match="no such key in llamacpp") as caught:
            composed(*line)
        said = str(caught.value)
        assert said.startswith(f"backend.cpu_kv_cache_gib={value.replace(',', ', ')}: ")
        # What it says to add is what works, beside the experiment's own limits.
        where = said.split("'")[1]
        points = composed(*line, where).points
        assert {point["backend"]["name"] for point in points if "cpu_kv_cache_gib" in point["backend"]} == {"vllm"}
        assert {point["backend"].get("slots") for point in points} == {None, 1, 16}


WHERE_LLAMACPP = "when={backend.slots: {backend: llamacpp}}"


@pytest.mark.parametrize(
    ("typed", "slots"), [("backend.slots=8", {8}), ("backend.slots=8,16", {8, 16}), ("model=tiny-llama", {16})]
)
def test_a_condition_counts_what_is_chosen_for_all_points(typed, slots):
    assert slots_of("backend=llamacpp", typed, WHERE_LLAMACPP) == {"llamacpp": slots}


@pytest.mark.parametrize("condition", ["model: tiny-llama", "backend: [vllm, tgi]", "workload.input_tokens: 7"])
def test_a_condition_may_be_of_any_group_or_key(condition):
    line = ["backend=vllm", "model=tiny-llama", "workload.input_tokens=7", "load.batch_size=4"]
    assert composed(*line, f"when={{load.batch_size: {{{condition}}}}}").points[0]["load"]["batch_size"] == 4
    with pytest.raises(ConfigError, match="exclude: drops every point"):
        composed(*line, f"exclude=[{{{condition}}}]")


def test_a_key_that_applies_nowhere_is_not_what_is_chosen():
    """In vLLM's points the slots are left out; a condition on them is not met there."""
    when = "when={backend.slots: {backend: llamacpp}, workload.input_tokens: {backend.slots: 8}}"
    line = ["backend=vllm,llamacpp", "backend.slots=8", "workload.input_tokens=7", when]
    tokens = {point["backend"]["name"]: point["workload"]["input_tokens"] for point in composed(*line).points}
    assert tokens["llamacpp"] == 7 != tokens["vllm"]


@pytest.mark.parametrize("value", ["8", "8,16"])
def test_a_value_whose_condition_suits_no_point_is_refused(value):
    for line in (["backend=vllm", WHERE_LLAMACPP], ["+experiment=completion_batches", "backend=vllm"]):
        with pytest.raises(ConfigError, match="no point of the plan meets the condition {backend: llamacpp}") as error:
            composed(*line, f"backend.slots={value}")
        assert str(error.value).startswith(f"backend.slots={value.replace(',', ', ')}: ")
        assert "\n" not in str(error.value)


def test_what_the_refusal_says_to_add_sets_the_value():
    line = ["+experiment=completion_batches", "backend=ctranslate2", "backend.dtype=float16"]
    with pytest.raises(ConfigError, match="no point of the plan meets") as error:
        composed(*line)
    points = composed(*line, str(error.value).split("'")[1]).points
    assert {point["backend"]["dtype"] for point in points} == {"float16"}


@pytest.mark.parametrize("when", ["5", "null", "[1]", "{backend.slots: 5}", "{backend.slots: null}"])
@pytest.mark.parametrize("backend", ["llamacpp", "vllm,llamacpp"])
def test_a_when_of_another_shape_is_refused(backend, when):
    with pytest.raises(ConfigError) as error:
        composed(f"backend={backend}", "backend.slots=8", f"when={when}")
    assert str(error.value) == f"when={when}: expected {{key: {{axis: value}}}}"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("grid=5", "grid=5: expected {axis: values}"),
        ("zip=5", "zip=5: expected {axis: values}, or a list of such mappings"),
        ("zip=[5]", "zip=[5]: expected {axis: values}, or a list of such mappings"),
        ("exclude=5", "exclude=5: expected [{axis: value}]"),
        ("exclude=null", "exclude=null: expected [{axis: value}]"),
        ("exclude={backend: vllm}", "exclude={backend: vllm}: expected [{axis: value}]"),
        ("exclude=[5]", "exclude=[5]: expected [{axis: value}]"),
        ("ladder=[5]", "ladder=[5]: expected [{step: name, set: {key: value}}]"),
        ("ladder=[{step: a, set: 3}]", "ladder=[{step: a, set: 3}]: expected [{step: name, set: {key: value}}]"),
        ("without_gpu=3", "without_gpu=3: expected {key: value}"),
        ("ladder=[{step: fp8, set: {backned.flags.x: 1}}]", "ladder.set.backned.flags.x: expected a key of backend,"),
        ("zip={wrkload.input_tokens: [1, 2]}", "zip.wrkload.input_tokens: expected a key of backend,"),
        ("exclude=[{batch_size: 4}]", "exclude.batch_size: expected a key of backend,"),
        ("when={load.batch_size: {bakend: vllm}}", "when.load.batch_size.bakend: expected a key of backend,"),
        ("exclude=[{backend.nope: 1}]", "backend.nope=1: not an axis here; expected: backend, gateway, load,"),
        ("when={load.batch_size: {load.rate: 1}}", "load.rate=1: not an axis here; expected: backend, gateway, load,"),
        ("without_gpu={grid: 3}", "without_gpu.grid=3: expected {axis: values}"),
        ("replicates=1000000", "replicates=1000000: input should be less than or equal to 10000"),
        ("name=../x", "name='../x': string should match"),
        ("out=", "out='': string should have at least 1 character"),
        ("hardware=foo", "hardware=foo: unknown; expected: a100-80g, auto, cpu, gpu, h100, h200, l4, t4"),
        ("+experiment=serving,kv_cache", "experiment=serving,kv_cache: expected the name of a single experiment"),
        ("client.processes=0", "client.processes=0: input should be greater than 0 or "),
        ("client.timeouts.totl=3", "client.timeouts.totl=3: unknown key; did you mean total? expected: "),
        ("client.timeouts.connect=5000", "client.timeouts={'connect': 5000, "),
        ("slo={foo: 1s}", "slo={'foo': '1s'}: foo: expected ttft, tpot or e2el, with a percentile as in ttft.p90"),
        ("slo=ttft=200,tpot=1s", "slo='ttft=200,tpot=1s': ttft=200: expected a unit: 200ms or 200s"),
        ("slo=ttft:0.5", "slo='ttft:0.5': ttft:0.5: expected bounds such as ttft=200ms,tpot.p90=0.05s"),
        (
            "cluster.simulate={nods: 2}",
            "cluster.simulate.nods=2: unknown key; did you mean nodes? expected: accelerator, capability, cpus,",
        ),
        ("--dry-run", "--dry-run: unknown option; expected key=value, such as dry_run=true, or --help"),
    ],
)
def test_what_is_mistyped_is_refused_in_its_own_words(typed, said):
    with pytest.raises(ConfigError) as error:
        composed("backend=vllm", "load.batch_size=4", typed)
    assert str(error.value).startswith(said)


def test_ladder_steps_may_be_excluded_and_conditions_may_speak_of_them():
    ladder = "ladder=[{step: a}, {step: b, set: {backend.flags.x: 1}}, {step: c, set: {backend.flags.x: 2}}]"
    found = composed("backend=vllm", ladder, "exclude=[{ladder: b}]", "when={backend.flags.x: {ladder: c}}")
    assert [point["ladder"] for point in found.coordinates] == ["a", "c"]


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (
            "{backend: transfromers}",
            "baseline.backend=transfromers: unknown; did you mean transformers? expected: tgi, transformers, vllm",
        ),
        ("{load.batch_size: 3}", "baseline.load.batch_size=3: unknown; expected: 1, 2"),
    ],
)
def test_a_baseline_that_is_no_value_of_its_axis_is_refused(baseline, said):
    line = ["+experiment=latency_bound", "load.batch_size=1,2"]
    with pytest.raises(ConfigError) as caught:
        composed(*line, f"baseline={baseline}")
    assert str(caught.value) == said
    assert composed(*line, "baseline={backend: vllm, load.batch_size: 2}").settings.baseline["backend"] == "vllm"


def test_the_experiments_own_baseline_may_be_left_out_and_one_that_is_asked_for_may_not():
    assert composed("+experiment=latency_bound", "backend=vllm").settings.baseline == {"backend": "transformers"}
    with pytest.raises(ConfigError, match=r"baseline\.backend=transformers: unknown; expected: vllm"):
        composed("+experiment=latency_bound", "backend=vllm", "baseline.backend=transformers")


@pytest.mark.parametrize("experiment", ["conversations", "agents"])
def test_an_engine_has_the_prefix_caching_of_its_own_flags(experiment):
    theirs = composed(f"+experiment={experiment}", "backend=llamacpp")
    assert {each["backend.flags.no-cache-prompt"] for each in theirs.coordinates} == {True, False}
    assert theirs.settings.baseline is None
    with pytest.raises(ConfigError, match=r"baseline\.load\.slots: not an axis of this plan"):
        composed(f"+experiment={experiment}", "backend=llamacpp", "baseline={load.slots: 1}")


@pytest.mark.parametrize(("hardware", "steps"), [("l4", 8), ("cpu", 6)])
def test_conversations_vary_one_setting_of_vllm_at_a_time(hardware, steps):
    composition = composed("+experiment=conversation_steps", hardware=hardware)
    assert len({each["ladder"] for each in composition.coordinates}) == steps
    pairs = [point for point in composition.points if point["backend"].get("replicas") == 2]
    assert {point["gateway"]["routing"] for point in pairs} == {"round_robin", "prefix"}


def test_ten_thousand_points_are_expanded_in_seconds():
    began = time.process_time()
    composition = composed("backend=vllm", "workload.num_requests=range(1,101)", "load.batch_size=range(1,101)")
    assert len(composition.points) == 10_000
    assert time.process_time() - began < 20  # a guard against composing each point (15 min); benchmarks/ has the figure


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("backend=vlm", "backend=vlm: unknown; did you mean vllm? expected: ctranslate2,"),
        ("model=tiny-lama", "model=tiny-lama: unknown; did you mean tiny-llama?"),
        ("replicats=3", "key=replicats: unknown; did you mean replicates? expected: agreement,"),
        ("batch_size=4", "key=batch_size: unknown; did you mean load.batch_size? expected: agreement,"),
        ("lod.batch_size=4", "key=lod.batch_size: unknown; did you mean load.batch_size?"),
        ("exclude=[{load.batch_size: 3}]", "load.batch_size=3: unknown; expected: 1, 2"),
    ],
)
def test_the_nearest_name_is_suggested(typed, message):
    composition = composed("backend=vllm")
    here = surroundings(composition.settings, ())
    with pytest.raises(ConfigError) as error:
        make_plan(composed("backend=vllm", "model=tiny-llama", "load.batch_size=1,2", typed), here)
    assert str(error.value).startswith(message)


@pytest.fixture
def experiment(tmp_path):
    """experiment(text, *arguments): the composition of an experiment in a folder of the user's own."""
    folder = tmp_path / "mine"

    def run(text, *arguments, hardware="cpu", obstacle=lambda group, option, cache_dir: None, **files):
        for name, content in {"experiment/my": f"# @package _global_\nname: my\n{text}", **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.yaml").write_text(content)
        line = ["+experiment=my", "cluster=inline", "tracking=none", *arguments]
        return compose_run(line, lambda cluster: hardware, ConfigPath.of_user([str(folder)]), obstacle)

    return run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("replicats: 3", "experiment=my: replicats=3: unknown key; did you mean replicates? expected: agreement,"),
        ('deadlin: "08:00"', "experiment=my: deadlin=08:00: unknown key; did you mean deadline?"),
        ("hydra: {job: {chdir: true}}", "experiment=my: hydra: unknown key in experiment/my.yaml; remove it"),
        ("gird: {load.batch_size: [1, 2]}", "experiment=my: gird={load.batch_size: [1, 2]}: unknown key; did you mean"),
        ("max_faild: 0.0", "experiment=my: max_faild=0.0: unknown key; did you mean max_failed?"),
        ("load: {batchsize: 3}", "load.batchsize=3: unknown key; did you mean batch_size?"),
        ("client: {timeouts: {conect: 3}}", "client.timeouts.conect=3: unknown key; did you mean connect?"),
        ("defaults: [override /modle: small-llama]", "experiment=my: In 'experiment/my': Could not override 'modle'"),
        ("defaults: [/environment: cpu]", "experiment=my: environment={"),
        ("grid: {bakend: [vllm]}", "grid.bakend: expected a key of backend,"),
        ("grid: {load.batchsize: [1]}", "load.batchsize=1: unknown key; did you mean batch_size?"),
        ("without_gpu: {replicats: 1}", "without_gpu=replicats: unknown; did you mean replicates?"),
        ("without_gpu: {grid: {lod.batch_size: [1]}}", "without_gpu.grid.lod.batch_size: expected a key of backend,"),
        ("without_gpu: {without_gpu: {}}", "without_gpu=without_gpu: unknown; expected: "),
        ("published: {form: published}", "published=form: unknown; expected: "),
        ("without_gpu: {zip: 3}", "without_gpu.zip=3: expected {axis: values}, or a list of such mappings"),
        ("when: {load.batch_sise: {load: b}}\ngrid: {load.batch_size: [1]}", "when.load.batch_sise: not an axis of"),
        ("exclude: [{backend: vlm}]", "backend=vlm: unknown; did you mean vllm?"),
        ("exclude: [{load.rate: 3}]", "load.rate=3: not an axis here; "),
        ("backend: vllm", "experiment=my: backend=vllm: choose an option under defaults, `- override /backend: NAME`"),
        ("hardware: {prise: 3}", "hardware.prise=3: unknown key; expected: accelerator,"),
        ("replicates: true", "replicates=True: input should be a number"),
        ("percentiles: []", "percentiles=[]: tuple should have at least 1 item"),
        ("slo: {ttft: true}", "slo={'ttft': True}: ttft=True: expected a time above 0 with its unit, such as"),
        ("client: {timeouts: {total: true}}", "client.timeouts.total=True: input should be a number"),
        ("deadline: 20:10", 'deadline=1210: put a time of day in quotes: "08:00"'),
        ("replicates: [3", "experiment=my: while parsing a flow sequence in "),
        ("replicates: 2\nreplicates: 3", "experiment=my: while constructing a mapping in "),
        ("defaults: vllm", "experiment=my: Invalid defaults list in 'experiment/my'"),
        ("grid: {load.batch_size: 'range(1,1000000000)'}", "load.batch_size=range(1,1000000000): too many values;"),
        ("replicates: 10000\ngrid: {load.batch_size: 'range(1,100)'}", "replicates=10000: 990,000 trials; expected"),
        ("grid: {load.batch_size: 'range(0,999)', workload.num_requests: 'range(0,999)'}", "load.batch_size (999), "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hardware", ["cpu", "l4"])
def test_what_an_experiment_writes_is_used_or_refused(experiment, text, message, hardware):
    with pytest.raises(ConfigError) as error:
        build(experiment(text, hardware=hardware).points[0]["load"], "load")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_hardware_of_an_experiment_is_added_to_the_profile_found(experiment):
    hardware = experiment("hardware: {price_per_hour: 1.5}", hardware="l4").settings.hardware
    assert (hardware.accelerator, hardware.price_per_hour, hardware.assumed) == ("L4", 1.5, False)
    assert experiment("", hardware="l4").settings.hardware.assumed


def test_what_was_replaced_is_said_without_python(experiment):
    text = "zip: {load.batch_size: [1, 2]}\nwithout_gpu: {zip: {load.batch_size: [4]}, slo: {ttft: 1s}}"
    assert experiment(text).replaced == ["zip: load.batch_size 4 instead of load.batch_size 1, 2", "slo: ttft 1s"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("name: mine", "model=mine: _target_=None: expected the dotted name of a class"),
        ("_target_: 3\nname: mine", "model=mine: _target_=3: expected"),
        ("_target_: sweep.inputs.model.HubModel\nrepo: a/b", "model=mine: name=None: expected a name"),
    ],
)
def test_an_option_without_class_or_name_is_refused(experiment, model, message):
    with pytest.raises(ConfigError) as error:
        experiment("backend: {}", "model=mine", **{"model/mine": model})
    assert str(error.value).startswith(message)


def test_a_message_that_begins_with_a_name_keeps_it_as_it_is():
    with pytest.raises(ConfigError, match=": HF_TOKEN looks like a secret"):
        make_plan(composed("backend=simulated", "model=tiny-llama", "backend.environ={HF_TOKEN:x}"), None)


def test_a_data_set_that_might_be_replaced_is_refused_under_its_own_key(experiment):
    mine = "_target_: sweep.inputs.prompts.HubPrompts\nname: mine\ndataset: a/b\nfrist: 3\ninstead: qa"
    with pytest.raises(ConfigError, match=r"^workload\.frist=3: unknown key; did you mean first"):
        experiment("defaults: [override /workload: mine]", obstacle=fetch_obstacle, **{"workload/mine": mine})


def test_settings_of_hydra_are_refused_also_where_they_are_inherited(experiment):
    with pytest.raises(ConfigError, match=r"^experiment=my: hydra: unknown key in experiment/base\.yaml; remove it"):
        experiment("defaults: [base]", **{"experiment/base": "# @package _global_\nhydra: {verbose: true}"})


def test_an_experiment_without_its_package_line_is_refused_with_that_line(experiment):
    with pytest.raises(ConfigError, match="experiment=my: the first line must be `# @package _global_`"):
        experiment("", **{"experiment/my": "replicates: 3"})


def test_an_option_may_have_any_name(experiment):
    composition = experiment("", "model='é 1'", **{"model/é 1": "defaults: [tiny-llama, _self_]\nname: é"})
    assert composition.points[0]["model"]["name"] == "é"


def test_options_of_the_user_add_to_ours_and_override_them(experiment):
    composition = experiment(
        "defaults: [{override /model: wide}, {override /backend: simulated}]\ngrid: {load: [batch, two]}",
        **{
            "model/wide": "defaults: [tiny-llama, _self_]\nname: wide\narchitecture: {hidden_size: 512}",
            "load/two": "defaults: [batch, _self_]\nname: two\nbatch_size: 2",
            "hardware/l4": "name: l4\nplatform: cuda\naccelerator: L4\nprice_per_hour: 9.5",
        },
        hardware="l4",
    )
    first, second = composition.points
    assert (first["model"]["architecture"]["hidden_size"], first["model"]["architecture"]["vocab_size"]) == (512, 4096)
    assert (first["load"]["batch_size"], second["load"]["batch_size"]) == (1, 2)
    assert composition.settings.hardware.price_per_hour == 9.5
    assert {name: path.split("/mine/")[1] for name, path in composition.origins.items()} == {
        "experiment=my": "experiment/my.yaml",
        "model=wide": "model/wide.yaml",
        "load=two": "load/two.yaml",
        "hardware=l4": "hardware/l4.yaml",
    }


def test_folders_of_the_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ConfigPath.of_user().folders == (CONF,)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "other" / "model").mkdir(parents=True)
    (tmp_path / "other" / "model" / "my.yaml").touch()
    (tmp_path / "empty").mkdir()
    assert ConfigPath.of_user(["other"]).folders == (tmp_path / "other", tmp_path / "conf", CONF)
    (tmp_path / "conf" / "config.yaml").write_text("another: program")
    assert ConfigPath.of_user().folders == (CONF,)
    for folder, message in (
        ("conf", "config.yaml has no effect"),
        ("nope", "no such folder"),
        ("empty", "no option in this folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            ConfigPath.of_user([folder])
    with pytest.raises(ConfigError, match="model=nope: unknown; expected: .*tiny-llama"):
        ConfigPath().load("model", "nope")


@pytest.mark.parametrize("typed", [["name=night"], ["name=night", "cache_dir='/scratch/${name}'"]])
def test_a_setting_refers_to_another_as_it_was_typed(experiment, typed):
    assert experiment("cache_dir: /scratch/${name}", *typed).settings.cache_dir == "/scratch/night"


@pytest.mark.parametrize("hardware", ["cpu", "l4"])
def test_an_axis_typed_into_zip_is_not_one_of_the_grid_as_well(experiment, hardware):
    with pytest.raises(ConfigError, match=r"^load\.batch_size: the axis occurs in two of grid, zip and ladder"):
        experiment("grid: {load.batch_size: [1, 2]}", "zip={load.batch_size: [3, 4]}", hardware=hardware)


def test_an_axis_of_the_grid_may_be_one_of_zip_without_a_gpu(experiment):
    text = "grid: {load.batch_size: [1, 2, 3]}\nwithout_gpu: {zip: {load.batch_size: [4], workload.num_requests: [8]}}"
    assert experiment(text).coordinates == [{"load.batch_size": 4, "workload.num_requests": 8}]
    assert len(experiment(text, hardware="l4").coordinates) == 3


def test_an_editors_lock_is_no_option(experiment, tmp_path):
    folder = tmp_path / "mine" / "load"
    folder.mkdir(parents=True)
    (folder / ".#two.yaml").symlink_to("user@host.1234:1")
    assert experiment("").points[0]["load"]["name"] == "batch"


def test_an_engines_own_numbers_may_be_bytes():
    line = ("backend.flags={x: 40000000000}", "backend.options={kv_cache_config: {host_cache_size: 45000000000}}")
    point = composed("backend=tensorrt_llm", "model=tiny-llama", *line).points[0]
    backend = build(point["backend"], "backend")
    assert backend.flags["x"] == 40_000_000_000
    assert backend.options["kv_cache_config"] == {"host_cache_size": 45_000_000_000}


def test_a_long_context_model_has_a_large_rope_base():
    point = composed("backend=vllm", "model=tiny-llama", "+model.architecture.rope_theta=3580165449").points[0]
    assert build(point["model"], "model").architecture.rope_theta == 3580165449


@pytest.mark.parametrize("name", ["load/batch.yaml", "config.yaml"])
def test_a_file_of_the_project_that_is_edited_counts_in_the_next_command(tmp_path, monkeypatch, name):
    folder = shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("locks"))
    monkeypatch.setattr("sweep.base.options.CONF", folder)
    path = ConfigPath((folder,))
    before = path.compose("config", ["load='batch'"]).values
    text = (folder / name).read_text()
    (folder / name).write_text(
        text.replace("batch_size: 1", "batch_size: 23").replace("replicates: 1", "replicates: 23")
    )
    after = path.compose("config", ["load='batch'"]).values
    assert 23 in (after["load"]["batch_size"], after["replicates"])
    assert 23 not in (before["load"]["batch_size"], before["replicates"])
