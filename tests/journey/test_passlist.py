from types import SimpleNamespace

import pytest
from small_models import chain

import onnxprune.api
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.journey import passes as passlist
from onnxprune.journey.passes import PassCall, parse
from onnxprune.model import Model


def test_text_is_read() -> None:
    assert parse("a") == [PassCall("a")]
    assert parse(" a , b{x=1,y=two} ,c{}") == [
        PassCall("a"),
        PassCall("b", {"x": "1", "y": "two"}),
        PassCall("c"),
    ]
    assert parse('b{x="one, two" allow-inexact=true}') == [
        PassCall("b", {"x": "one, two", "allow_inexact": "true"})
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the name of a pass at character 1"),
        ("a,", "the name of a pass at character 3"),
        ("a b", "',' at character 3"),
        ("a{x}", "'=' at character 4"),
        ("a{x=}", "a value of 'x' at character 5"),
        ("a{x=1", "an option or '}' at character 6"),
        ("a{x=1 x=2}", "gives 'x' of 'a' twice"),
    ],
)
def test_text_that_cannot_be_read_says_where(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proon{ratio=0.5}", "There is no 'proon' in passes; known are: "),
        ("prune{rtio=0.5}", "has no option 'rtio'"),
        ("prune{rtio=0.5}", "Did you mean 'ratio'?"),
        ("prune{ratio=half}", "must be float or a share in percent or none; got 'half'"),
        ("prune{ratio=0.5 verify=perhaps}", "must be bool; got 'perhaps'"),
        ("sparsify", "needs 'pattern', as in sparsify{pattern=...}"),
    ],
)
def test_unknown_names_and_values_are_refused_before_anything_runs(text: str, words: str) -> None:
    ran = []
    with pytest.raises(UsageError) as caught:
        passlist.apply(Model.load(chain()), parse(f"prune{{ratio=0}},{text}"), ran.append)
    assert words in str(caught.value)
    assert not ran


def test_values_get_the_types_of_the_annotations() -> None:
    step = PassCall("prune", {"ratio": "0.25", "align": "8", "ignore": "a|b", "verify": "no", "seed": "3"})
    _, options = passlist._bind(step)
    assert options == {"ratio": 0.25, "align": 8, "ignore": ("a", "b"), "verify": False, "seed": 3}
    assert passlist._bind(PassCall("prune", {"ratio": "0.25", "align": "auto"}))[1]["align"] == "auto"


def _leaf(run: object) -> object:
    return lambda package, name: SimpleNamespace(run=run)


def test_a_pass_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: Model) -> Model:
        raise ValueError("boom")

    def gives_nothing(model: Model) -> Model:
        return None  # type: ignore[return-value]

    def imports(package: str, name: str) -> object:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy.linalg")

    def broken(package: str, name: str) -> object:
        compile("x = (", f"{name}.py", "exec")

    for load, words in (
        (_leaf(fails), "The pass 'mine' fails with ValueError: boom"),
        (_leaf(gives_nothing), "The pass 'mine' returned NoneType, and must return a Model"),
        (imports, "The pass 'mine' needs .*'scipy.linalg' isn't installed; .*'pip install scipy'"),
        (broken, "The pass 'mine' fails with SyntaxError"),
    ):
        monkeypatch.setattr("onnxprune.registry.load", load)
        with pytest.raises(OnnxPruneError, match=words):
            onnxprune.api.run(chain(), "mine")
