"""No call that trusts its input, by the syntax of the code; and every test that the threat model names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "docs" / "security.md"
OWN_PICKLES = {
    "platform/altdiffusion/execution/runner.py",
    "platform/altdiffusion/training/reporting/relay.py",
}
"""What unpickles what another process of the same job has pickled, and Ray has carried."""
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "marshal.loads", "shelve.open", "joblib.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "pandas.read_pickle", "cloudpickle.loads", "csv.writer", "csv.DictWriter",
    "extractall", "extract", "to_csv", "write_csv", "mktemp", "xml.etree.ElementTree.fromstring", "ET.fromstring",
}  # fmt: skip


def calls() -> Iterator[tuple[str, int, str, dict[str, ast.expr]]]:
    """Yield (file, line, name of what is called, keyword arguments) of every call."""
    for folder in ("platform", "jobs", "pipelines", "demo", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    keywords = {word.arg: word.value for word in node.keywords if word.arg is not None}
                    yield str(path.relative_to(ROOT)), node.lineno, ast.unparse(node.func), keywords


def is_constant(value: ast.expr | None, wanted: object) -> bool:
    return isinstance(value, ast.Constant) and value.value is wanted


def complaint(file: str, name: str, words: dict[str, ast.expr]) -> str:
    """Return what is wrong with a call; empty where nothing is."""
    last = name.rpartition(".")[2]
    if last == "extractall" and ast.unparse(words.get("filter", ast.Constant(None))) == "'data'":
        return ""
    if name in FORBIDDEN or (last in FORBIDDEN and name != last and last not in ("eval", "exec", "extract")):
        return "trusts its input"
    if last in ("load", "loads") and name.split(".")[0] in ("pickle", "dill") and file not in OWN_PICKLES:
        return "unpickles"
    if name == "torch.load" and not is_constant(words.get("weights_only"), True):
        return "needs weights_only=True"
    if name in ("np.load", "numpy.load") and not is_constant(words.get("allow_pickle"), False):
        return "needs allow_pickle=False"
    if name == "yaml.load" and "Loader" not in words and file != "platform/altdiffusion/config.py":
        return "needs a safe loader"
    if "trust_remote_code" in words and not is_constant(words["trust_remote_code"], False):
        return "runs code of a model's folder"
    if is_constant(words.get("shell"), True):
        return "gives a text to a shell"
    if is_constant(words.get("verify"), False) or is_constant(words.get("autoescape"), False):
        return "leaves a check out"
    return ""


def test_no_call_that_trusts_its_input() -> None:
    judged = [(f"{file}:{line}: {name}", complaint(file, name, words)) for file, line, name, words in calls()]
    found = [f"{place} {why}" for place, why in judged if why]
    assert not found, "\n".join(found)


def test_calls_that_are_wrong_are_found() -> None:
    wrong = (
        "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "pickle.loads(b)",
        "yaml.load(t)", "subprocess.run(t, shell=True)", "tar.extractall()", "requests.get(u, verify=False)",
        "AutoModel.from_pretrained(m, trust_remote_code=True)", "eval(t)", "table.to_csv(f)", "csv.writer(f)",
    )  # fmt: skip
    for text in wrong:
        node = ast.parse(text).body[0]
        assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        words = {word.arg: word.value for word in node.value.keywords if word.arg is not None}
        assert complaint("x.py", ast.unparse(node.value.func), words), text


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SECURITY.read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (file, name)


def test_every_attack_names_its_test() -> None:
    part = SECURITY.read_text(encoding="utf-8").partition("## What each attacker can try")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| tries")]
    assert rows
    assert all(re.search(r"\| `tests/[\w/]+\.py::\w+` \|$", row) for row in rows)
