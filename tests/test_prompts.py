import json

import numpy as np
import pytest

from conftest import PROJECT
from fewshot import prompts
from fewshot.artifacts import Text
from fewshot.errors import TaskError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "templates.json").write_text(json.dumps({"default": "a photo of a {}.", "Animal": ["a {} in the wild.", "a {} at rest."], "Animal_Sea": "a {} under water."}))
    (tmp_path / "Animal_prompt.json").write_text(json.dumps({"Polar Bear": ["A polar bear is white."], "Yeti": ["A yeti is seldom seen."]}))
    return tmp_path


def test_sentences_are_the_groups_templates_and_the_classs_own(folder):
    read = prompts.read(["Animal_Polar_Bear", "Animal_Bee", "Animal_Sea_Crab", "teapot_2", "Animal_"], folder)
    assert read.sentences == [["a Polar Bear in the wild.", "a Polar Bear at rest.", "A polar bear is white."], ["a Bee in the wild.", "a Bee at rest."],
                              ["a Crab under water."], ["a photo of a teapot 2."], ["a photo of a Animal."]]
    assert read.without == ["Animal_Bee"] and read.strangers == ["Animal_prompt.json: Yeti"]
    assert read.groups == ["Animal", "Animal", "Animal_Sea", "default", "default"]


def test_groups_are_those_recorded_with_the_text():
    names = np.array(["Animal_Bear", "Sign_star"])
    assert prompts.groups_of(Text(np.eye(2), names, 100.0, {"groups": ["Animal", "Sign"]})) == ["Animal", "Sign"]
    assert prompts.groups_of(Text(np.eye(2), names, 100.0, {})) == ["Animal", "default"]


def test_a_name_is_said_as_people_say_it(folder):
    (folder / "names.json").write_text('{"Animal_Polar_Bear": "ice bear"}')
    read = prompts.read(["Animal_Polar_Bear", "Animal_Bee"], folder)
    assert read.sentences == [["a ice bear in the wild.", "a ice bear at rest.", "A polar bear is white."], ["a Bee in the wild.", "a Bee at rest."]]


@pytest.mark.parametrize("file, content, said", [
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
])
def test_a_file_of_another_form_is_one_clear_error(folder, file, content, said):
    (folder / file).write_text(content)
    with pytest.raises(TaskError, match=said) as raised:
        prompts.read(["Animal_Bee"], folder)
    assert file in str(raised.value) and "\n" not in str(raised.value)


def test_the_projects_own_files_are_of_the_right_form():
    templates = prompts.read_templates()
    assert set(templates) >= {"default", "Animal", "Caltech-101", "Food-101", "Thu-dog", "Stanford-Cars"}
    for file in sorted((PROJECT / "prompts").glob("*_prompt.json")):
        group = file.name[: -len("_prompt.json")]
        names = [f"{group}_{words.replace(' ', '_')}" for words in json.loads(file.read_text(encoding="utf-8"))]
        read = prompts.read(names)
        assert group in templates and names and not read.without and not [s for s in read.strangers if s.startswith(group)]
        for sentences, name in zip(read.sentences, names):
            assert len(set(sentences)) == len(sentences) and all(prompts.split_group(name, templates)[1].split()[0].lower() in s.lower() or "scissors" in s.lower() for s in sentences)
