"""StopStrings against str.find over the whole text, however the text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from russet.stop_strings import StopStrings

texts = st.text(alphabet="ab🐶", max_size=30)
stops = st.lists(st.text(alphabet="ab🐶", min_size=1, max_size=5), max_size=3)


@given(chunks=st.lists(texts, max_size=10), stops=stops)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(chunks, stops):
    # The oracle watches the text grow character by character: the first stop string to be complete ends it.
    whole = "".join(chunks)
    expected, found = whole, False
    for end in range(1, len(whole) + 1):
        starts = [end - len(s) for s in stops if whole[:end].endswith(s)]
        if starts:
            expected, found = whole[: min(starts)], True
            break

    stream, shown, stopped = StopStrings(stops), "", False
    for chunk in chunks:
        text, stopped = stream.push(chunk)
        shown += text
        if stopped:
            break
    if not stopped:
        shown += stream.finish()
    assert (shown, stopped) == (expected, found)


@given(chunks=st.lists(texts, max_size=10), stops=stops)
def test_nothing_shown_can_be_part_of_a_stop_string(chunks, stops):
    stream, shown, whole = StopStrings(stops), "", ""
    for chunk in chunks:
        text, stopped = stream.push(chunk)
        shown += text
        whole += chunk
        assert whole.startswith(shown)
        assert not any(s in shown for s in stops)
        held = whole[len(shown) :]
        assert stopped or any(s.startswith(held) for s in stops) or not held
        if stopped:
            break


def test_the_stop_string_that_is_complete_first_ends_the_text():
    assert StopStrings(["abcd", "c"]).push("abcd") == ("ab", True)
    assert StopStrings(["bc", "abc"]).push("abcd") == ("", True)


def test_a_long_stop_string_in_one_push():
    assert StopStrings(["END"]).push("text END more") == ("text ", True)


def test_without_stop_strings_nothing_is_held_back():
    stream = StopStrings([])
    assert stream.push("text") == ("text", False)
    assert stream.finish() == ""
