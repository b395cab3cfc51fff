from __future__ import annotations

from pathlib import Path

import pytest
from ml_collections import ConfigDict

import carls_jax as carls
from carls_jax.errors import ConfigError, FieldNotFoundError
from carls_jax.launch.experiment import Experiment, RunConfig, load
from carls_jax.makers import lockstep
from carls_jax.training import SessionConfig

TINY = Path(__file__).with_name("tiny_experiment.py")
NUMBERS = carls.TableSpec("numbers", {"double": carls.Field()})


def train(session):
    return None


def make(name: str = "doubles", **options):
    @carls.maker(name=name, **{"writes": {"numbers": "double"}} | options)
    def refresh(ctx):
        yield ctx.data, {"double": 2 * ctx.data}

    return refresh


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes an experiment's file."""

    def written(text: str) -> Path:
        path = tmp_path / "config.py"
        path.write_text(text)
        return path

    return written


def test_an_experiment_of_tables_and_makers_is_accepted():
    experiment = Experiment(train, tables=(NUMBERS,), makers=(make(), make("again")))
    assert experiment.maker("again").name == "again"


@pytest.mark.parametrize(
    ("maker", "expected"),
    [
        (make(writes={"number": "double"}), "has no 'number'; did you mean 'numbers'?"),
        (make(reads="numbrs"), "has no 'numbrs'; did you mean 'numbers'?"),
        (make("trainer"), "beside those of bank and trainer"),
        (make("a.b"), "a letter, then letters, digits or underscores"),
    ],
)
def test_a_maker_that_does_not_suit_the_experiment_is_refused(maker, expected):
    with pytest.raises(ConfigError, match=f"maker '{maker.name}'.*{expected}".replace("?", r"\?")):
        Experiment(train, tables=(NUMBERS,), makers=(maker,))


def test_a_maker_that_writes_an_unknown_field_is_refused():
    with pytest.raises(FieldNotFoundError, match="double"):
        Experiment(train, tables=(NUMBERS,), makers=(make(writes={"numbers": "treble"}),))


def test_names_that_are_used_twice_are_refused():
    with pytest.raises(ConfigError, match=r"makers .* doubles is used twice"):
        Experiment(train, tables=(NUMBERS,), makers=(make(), make()))
    with pytest.raises(ConfigError, match=r"tables .* numbers is used twice"):
        Experiment(train, tables=(NUMBERS, NUMBERS))


def test_a_maker_that_is_not_there_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'doubles'\?"):
        Experiment(train, tables=(NUMBERS,), makers=(make(),)).maker("double")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_shards": 0}, "num_shards=0: allowed is 1 to 64"),
        ({"num_shards": 65}, "num_shards=65: allowed is 1 to 64"),
        ({"num_workers": {"each": 0}}, "num_workers.each=0: allowed is 1 and more"),
    ],
)
def test_a_run_config_out_of_range_is_refused(values, expected):
    with pytest.raises(ConfigError, match=expected):
        RunConfig(**values)


def test_a_file_is_read_with_the_defaults_of_the_run():
    loaded = load(TINY)
    assert loaded.path == TINY
    assert loaded.run == RunConfig()
    assert loaded.config.run.session.checkpoint_every_steps == 100
    assert loaded.num_workers == {"whole": 1, "each": 1}


def test_overrides_reach_the_config_and_the_run():
    loaded = load(
        TINY,
        [
            "rate=2",
            "run.seed=3",
            "run.num_workers.each=2",
            "run.session.schedule.every_steps=20",
            "run.session.schedule.delay=once",
        ],
    )
    assert loaded.config.rate == 2.0
    assert loaded.run == RunConfig(
        seed=3,
        num_workers={"each": 2},
        session=SessionConfig(schedule=lockstep(20, delay="once")),
    )
    assert loaded.config.run.session.schedule == ConfigDict({"every_steps": 20, "delay": "once"})
    assert loaded.num_workers == {"whole": 1, "each": 2}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rat=1", "config has no 'rat'; did you mean 'rate'?"),
        ("rate=x", "config.rate='x': expected float"),
        ("run.sede=1", "config.run has no 'sede'; did you mean 'seed'?"),
        ("run.mode=inlin", "config.run.mode='inlin': expected 'processes' or 'inline'"),
        ("run.session.schedule.delay=-1", "config.run.session.schedule: delay=-1: allowed"),
        ("run.session.schedule.delay=2", "config.run.session.schedule: delay=2: only makers in"),
        ("run.num_shards=0", "config.run: num_shards=0: allowed is 1 to 64"),
        ("run.num_workers.each=0", "config.run: num_workers.each=0: allowed"),
        ("run.num_workers.each=x", "config.run.num_workers.each='x': expected int"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override, expected):
    with pytest.raises(ConfigError) as caught:
        load(TINY, [override])
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.num_workers.eahc=2", "did you mean 'each'?"),
        ("run.num_workers.whole=2", "num_workers.whole=2: it refreshes whole tables"),
    ],
)
def test_workers_that_do_not_suit_the_makers_are_refused(override, expected):
    loaded = load(TINY, [override])
    with pytest.raises(ConfigError, match=expected):
        _ = loaded.experiment


def test_the_experiment_is_made_once_and_only_when_it_is_asked_for(write):
    path = write(
        "from ml_collections import ConfigDict\n"
        "import carls_jax as carls\n"
        "made = []\n"
        "def get_config(): return ConfigDict({'made': made})\n"
        "def make_experiment(config):\n"
        "    made.append(1)\n"
        "    return carls.Experiment(lambda session: None)\n"
    )
    loaded = load(path)
    assert loaded.config.made == []
    assert loaded.experiment is loaded.experiment
    assert loaded.config.made == [1]


def test_a_locked_config_with_a_run_of_its_own_is_read(write):
    path = write(
        "from ml_collections import FrozenConfigDict\n"
        "from carls_jax.launch.experiment import RunConfig\n"
        "from carls_jax.training import SessionConfig\n"
        "def get_config(): return FrozenConfigDict({'x': 1, 'run': {'seed': 4, "
        "'session': SessionConfig(log_every_steps=7)}})\n"
        "def make_experiment(config): return None\n"
    )
    loaded = load(path, ["x=2", "run.session.max_pending_writes=3"])
    assert loaded.config.x == 2
    assert loaded.run == RunConfig(
        seed=4, session=SessionConfig(log_every_steps=7, max_pending_writes=3)
    )
    with pytest.raises(ConfigError, match="make_experiment returned NoneType, not an Experiment"):
        _ = loaded.experiment


def test_files_beside_the_config_can_be_imported(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("nowhere")  # puts sys.path back afterwards
    (tmp_path / "beside_the_config.py").write_text("VALUE = 7\n")
    path = write(
        "from beside_the_config import VALUE\n"
        "from ml_collections import ConfigDict\n"
        "def get_config(): return ConfigDict({'value': VALUE})\n"
        "def make_experiment(config): return None\n"
    )
    assert load(path).config.value == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"config.py defines no function get_config\(\)"),
        ("def get_config(): pass", r"config.py defines no function make_experiment\(\)"),
        ("get_config = 1", r"config.py defines no function get_config\(\)"),
        (
            "def get_config(): return {}\ndef make_experiment(config): pass",
            r"get_config\(\) returned dict, not a ConfigDict",
        ),
    ],
)
def test_a_file_that_is_no_experiment_is_refused(write, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load(write(text))


def test_a_path_that_leads_to_no_python_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.py: no such file"):
        load(tmp_path / "nowhere.py")
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"ends in \.py"):
        load(tmp_path / "config.yaml")
