"""Class sentences: how the files in prompts/ are read, and what the project's own files must hold."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from conftest import PROJECT

import extract_feature
from fewshot import data, prompts
from fewshot.artifacts import Text
from fewshot.errors import TaskError
from jclip import tokenizer


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "templates.json").write_text(
        json.dumps(
            {
                "default": "a photo of a {}.",
                "Animal": ["a {} in the wild.", "a {} at rest."],
                "Animal_Sea": "a {} under water.",
            }
        )
    )
    (tmp_path / "Animal_prompt.json").write_text(
        json.dumps({"Polar Bear": ["A polar bear is white."], "Yeti": ["A yeti is seldom seen."]})
    )
    return tmp_path


def test_sentences_are_the_groups_templates_and_the_classs_own(folder):
    loaded = prompts.read(["Animal_Polar_Bear", "Animal_Bee", "Animal_Sea_Crab", "teapot_2", "Animal_"], folder)
    assert loaded.sentences == [
        ["a Polar Bear in the wild.", "a Polar Bear at rest.", "A polar bear is white."],
        ["a Bee in the wild.", "a Bee at rest."],
        ["a Crab under water."],
        ["a photo of a teapot 2."],
        ["a photo of a Animal."],
    ]
    assert loaded.without_entry == ["Animal_Bee"] and loaded.unmatched == ["Animal_prompt.json: Yeti"]
    assert loaded.groups == ["Animal", "Animal", "Animal_Sea", "default", "default"]
    assert loaded.n_templates == [2, 2, 1, 1, 1]


def test_groups_are_those_recorded_with_the_text():
    names = np.array(["Animal_Bear", "Sign_star"])
    assert prompts.class_groups(Text(np.eye(2), names, 100.0, {"groups": ["Animal", "Sign"]})) == ["Animal", "Sign"]
    assert prompts.class_groups(Text(np.eye(2), names, 100.0, {})) == ["Animal", "default"]


def test_a_name_in_names_json_is_the_one_that_templates_use(folder):
    (folder / "names.json").write_text('{"Animal_Polar_Bear": "ice bear"}')
    loaded = prompts.read(["Animal_Polar_Bear", "Animal_Bee"], folder)
    assert loaded.sentences == [
        ["a ice bear in the wild.", "a ice bear at rest.", "A polar bear is white."],
        ["a Bee in the wild.", "a Bee at rest."],
    ]


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("names.json", '{"Animal_Bee": 1}', "'Animal_Bee': expected the name as people say it"),
        ("templates.json", '{"default": "no place"}', "'default': expected a sentence"),
        ("templates.json", '{"default": "{} and {}"}', "'default': expected a sentence"),
        ("templates.json", '{"default": "a {0}"}', "'default': expected a sentence"),
        ("templates.json", '{"Animal": "a {}"}', 'no "default"'),
        ("templates.json", "[]", "holds a list"),
        ("templates.json", "{", "not JSON"),
        ("Animal_prompt.json", '{"Bee": "one"}', "'Bee': expected a list of sentences"),
        ("Animal_prompt.json", '{"Bee": []}', "'Bee': expected a list of sentences"),
        ("Animal_prompt.json", '{"Bee": ["x", 1]}', "'Bee': expected a list of sentences"),
        ("Animal_prompt.json", '{"Bee": ["\\ud800', "not JSON"),
    ],
)
def test_a_file_of_another_form_is_one_clear_error(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(TaskError, match=message) as raised:
        prompts.read(["Animal_Bee"], folder)
    assert file in str(raised.value) and "\n" not in str(raised.value)


LONG = "very " * 90


@pytest.mark.parametrize(
    "classes, sentence, spoken, message",
    [
        (
            ["Animal_Bee"],
            f"A bee is {LONG}small.",
            "bee",
            r"Animal_prompt.json: class 'Animal_Bee': text of 97 tokens is too long for a context of 77: it begins 'A "
            r"bee is very very [very ]*'; shorten it$",
        ),
        (
            ["Animal_Ant", f"Animal_{LONG}Bee".replace(" ", "_")],
            "A bee.",
            "bee",
            r"templates.json: class 'Animal_very[_very]*': text of 9\d tokens is .*: it begins 'a very [very ]*'; "
            r"shorten the template, or give the class a shorter name in .*names.json$",
        ),
        (["Animal_Bee"], "A bee.", f"{LONG}bee", r"templates.json: class 'Animal_Bee': text of 9\d tokens is too long"),
    ],
)
def test_a_sentence_that_is_too_long_is_reported_with_its_file_and_class(folder, classes, sentence, spoken, message):
    (folder / "Animal_prompt.json").write_text(json.dumps({"Bee": ["A bee hums.", sentence]}))
    (folder / "names.json").write_text(json.dumps({"Animal_Bee": spoken}))
    with pytest.raises(TaskError, match=message) as raised:
        extract_feature.read_prompts(classes, folder)
    assert "truncate" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_sentence_that_is_too_long_is_reported_before_weights_are_looked_for(folder, work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (folder / "Animal_prompt.json").write_text(json.dumps({"Bee": [LONG]}))
    assert extract_feature.main(["--prompts", str(folder), "--weights", "absent"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {folder / 'Animal_prompt.json'}: class 'Animal_Bee'")


# ---- the project's own files ----

GROUPS = {"Animal": 52, "Caltech-101": 91, "Food-101": 101, "Thu-dog": 130, "Stanford-Cars": 29}
CLASSES = data.read_classes(PROJECT / "Dataset" / "classes_b.txt")


def entries_of(file):
    """Read a file in prompts/; fail where a key stands twice or the bytes are not UTF-8."""

    def check_distinct(pairs):
        assert len(dict(pairs)) == len(pairs), f"{file}: a key stands twice"
        return dict(pairs)

    return json.loads((prompts.FOLDER / file).read_bytes().decode("utf-8"), object_pairs_hook=check_distinct)


def normalized(text):
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def test_every_class_of_the_contest_has_sentences_and_every_entry_a_class():
    loaded = prompts.read(CLASSES)
    assert not loaded.without_entry and not loaded.unmatched
    assert {group: loaded.groups.count(group) for group in GROUPS} == GROUPS and len(CLASSES) == 403
    assert {f"{group}_prompt.json" for group in GROUPS} == {file.name for file in prompts.FOLDER.glob("*_prompt.json")}
    assert data.read_classes(PROJECT / "Dataset" / "classes.txt") == CLASSES[:374]


@pytest.mark.parametrize("group", GROUPS)
def test_sentences_are_many_short_and_of_their_class(group):
    spoken = entries_of("names.json")
    for words, sentences in entries_of(f"{group}_prompt.json").items():
        assert len(sentences) >= 10, words
        name = [
            part
            for part in normalized(spoken.get(f"{group}_{words.replace(' ', '_')}", words)).split()
            if part not in ("pair", "of", "from", "the", "a")
        ]
        for sentence in sentences:
            tokenizer.tokenize([sentence])  # raises above 77 tokens
            assert sentence == sentence.strip() and sentence.endswith("."), sentence
            assert 2 * sum(part[: max(3, len(part) - 1)] in normalized(sentence) for part in name) >= len(name), (
                f"{words} is not named: {sentence}"
            )
        openings = Counter(" ".join(normalized(sentence).split()[:3]) for sentence in sentences)
        assert max(openings.values()) <= len(sentences) / 2, f"{words}: {openings.most_common(1)}"


def test_no_sentence_stands_twice_nor_serves_two_classes_but_for_the_name():
    spoken, seen = entries_of("names.json"), {}
    for group in GROUPS:
        for words, sentences in entries_of(f"{group}_prompt.json").items():
            names = {normalized(words), normalized(spoken.get(f"{group}_{words.replace(' ', '_')}", words))}
            for sentence in sentences:
                for form in {normalized(sentence), *(normalized(sentence).replace(name, "#") for name in names)}:
                    assert seen.setdefault(form, (group, words, sentence)) == (group, words, sentence), (
                        sentence,
                        seen[form],
                    )


def test_names_json_has_the_names_that_people_use():
    spoken = entries_of("names.json")
    assert set(spoken) <= set(CLASSES)
    templates = prompts.read_templates()
    cars = [name for name in CLASSES if name.startswith("Stanford-Cars_")]
    assert all(re.match(r"(19|20)\d\d ", spoken[name]) for name in cars)
    replaced = (
        "Caltech-101_Faces_easy",
        "Thu-dog_Shiba_Dog",
        "Thu-dog_Brabancon_griffo",
        "Thu-dog_chinese_rural_dog",
        "Thu-dog_teddy",
        "Thu-dog_Black_sable",
        "Caltech-101_water_lilly",
        "Caltech-101_cougar_face",
    )
    assert all(spoken[name].lower() != prompts.split_group(name, templates)[1].lower() for name in replaced)
    for name in set(CLASSES) - set(spoken):  # the class name itself reads well
        assert "lilly" not in name and not name.endswith(("Dog", "_side", "_easy"))
