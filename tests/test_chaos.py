"""A short campaign of kills on one run; `make chaos` is the long one, on the whole suite."""

import pytest
from chaos import Trouble, campaign, compare, content


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    top = tmp_path_factory.mktemp("chaos")
    words = ["run", "--profile", "smoke", "steps=400"]
    return top, campaign(top, words, count=3, seed=5, shortest=1.0, longest=3.0)


def test_killed_again_and_again_a_run_ends_with_equal_records(survived):
    _, lines = survived
    print("\n".join(lines))
    assert lines[-1] == "none missing, none torn, none different, nothing left over"
    assert "1 npz" in lines[-2] and "1 safetensors" in lines[-2]


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda path: path.unlink(), "1 missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "1 different"),
    (lambda path: path.with_name(".torn.part").touch(), "1 left over: .torn.part"),
    (lambda path: path.with_name("more.npz").touch(), "1 too many: more.npz"),
])  # fmt: skip
def test_the_comparison_finds_what_is_lost(survived, spoil, words):
    top, _ = survived
    path = next((top / "wild/runs/smoke").glob("*.npz"))
    before = path.read_bytes()
    spoil(path)
    with pytest.raises(Trouble, match=words):
        compare(top / "calm", top / "wild", "smoke")
    path.write_bytes(before)
    for extra in (".torn.part", "more.npz"):
        path.with_name(extra).unlink(missing_ok=True)
    assert content(top / "calm", "smoke") == content(top / "wild", "smoke")
