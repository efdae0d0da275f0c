"""Environments in Python, as the runtime calls them."""

import asyncio
import enum
import json
import unittest
from typing import Literal, Optional

import turnwise
from environments import Fruit, Parrot
from turnwise._errors import describe
from turnwise._suite import SuiteAdapter
from turnwise._tools import tool_spec


def calls(*attempts):
    return json.dumps({"text": "", "calls": list(attempts)})


def call(name, **arguments):
    return {"call": {"id": f"id_{name}", "name": name, "arguments": arguments}}


class Steps(unittest.TestCase):
    def test_an_episode(self):
        suite = SuiteAdapter(Parrot)
        self.assertEqual((suite.name, suite.description), ("parrot", "Says a letter, which is to be repeated, twice."))
        episode = suite.begin(0)
        self.assertEqual(json.loads(episode.reset(1)), {"messages": [{"role": "user", "content": "a"}]})
        step = json.loads(episode.step('{"text": "a"}'))
        self.assertEqual(step["next"]["reward"], 0.5)
        self.assertEqual(step["next"]["observation"]["messages"][0]["content"], "a")
        step = json.loads(episode.step('{"text": "b"}'))
        self.assertEqual(step, {"end": {"reward": 0.0, "ending": "terminated", "solved": False}})

    def test_reset_gets_what_it_names(self):
        def made(reset):
            kind = type("Any", (), {"reset": reset, "step": lambda self, action: ("", 0.0, True)})
            suite = SuiteAdapter(kind, tasks=[{"a": 1, "b": 2}], held_out=[{"a": 3}])
            return json.loads(suite.begin(0).reset(7))["messages"][0]["content"]

        self.assertEqual(made(lambda self: "nothing"), "nothing")
        self.assertEqual(made(lambda self, seed: str(seed)), "7")
        self.assertEqual(made(lambda self, task: str(task)), "{'a': 1, 'b': 2}")
        self.assertEqual(made(lambda self, a, seed, b=None: f"{a} {b} {seed}"), "1 2 7")
        self.assertEqual(made(lambda self, **all: str(sorted(all))), "['a', 'b', 'seed', 'task']")

    def test_what_step_may_return(self):
        def answered(result):
            kind = type("Any", (), {"reset": lambda self: "", "step": lambda self, action: result})
            episode = SuiteAdapter(kind).begin(0)
            episode.reset(1)
            return json.loads(episode.step('{"text": ""}'))

        self.assertEqual(answered((None, 1, True))["end"], {"reward": 1.0, "ending": "terminated", "solved": True})
        self.assertEqual(answered((None, None, True))["end"]["solved"], False)
        self.assertEqual(answered(turnwise.Step(truncated=True))["end"]["ending"], "truncated")
        self.assertEqual(answered(turnwise.Step("again", faults=1))["next"]["faults"], 1)
        messages = ["one", {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "two"}]}]
        self.assertEqual(
            answered((messages, 0.0, False))["next"]["observation"]["messages"],
            [{"role": "user", "content": "one"}, {"role": "tool", "tool_call_id": "x", "content": "two"}],
        )
        wrong = [
            (("again", 0.0), TypeError, "must return (observation, reward, done)"),
            ((None, 0.0, False), TypeError, "an observation is a text"),
            (("again", float("nan"), False), ValueError, "not a finite number"),
            (([{"content": "x"}], 0.0, False), TypeError, "a message is a text"),
        ]
        for result, kind, text in wrong:
            with self.assertRaises(kind) as caught:
                answered(result)
            self.assertIn(text, str(caught.exception))

    def test_an_action_is_its_text_with_calls(self):
        seen = []

        class Tools:
            tools = [Fruit.guess]

            def reset(self):
                return "?"

            def step(self, action):
                seen.append(action)
                return None, 1.0, True

        suite = SuiteAdapter(Tools)
        self.assertEqual(json.loads(suite.tools)[0]["name"], "guess")
        episode = suite.begin(0)
        episode.reset(1)
        wrong = {"malformed": {"id": "c1", "raw": "{", "error": "decode", "message": "no JSON"}}
        episode.step(json.dumps({"text": "hm", "reasoning": "so", "calls": [call("guess", fruit="fig"), wrong]}))
        self.assertEqual((seen[0], seen[0].reasoning), ("hm", "so"))
        self.assertEqual(seen[0].calls[0], turnwise.ToolCall("guess", {"fruit": "fig"}, "id_guess"))
        self.assertEqual(seen[0].calls[1].error, "no JSON")

    def test_async_environments_run_beside_a_running_loop(self):
        class Slow:
            async def reset(self, seed):
                await asyncio.sleep(0)
                return str(seed)

            async def step(self, action):
                return action, 0.0, False

        async def main():
            return json.loads(SuiteAdapter(Slow).begin(0).reset(3))

        self.assertEqual(asyncio.run(main())["messages"][0]["content"], "3")

    def test_players_are_a_function_of_their_seed(self):
        suite = SuiteAdapter(Parrot, random=turnwise_player)
        observation = json.dumps({"messages": [{"role": "user", "content": "a"}]})
        played = [suite.player("expert", 5)(observation) for _ in range(3)]
        self.assertEqual(len(set(played)), 1)
        self.assertIn(json.loads(played[0])["text"], "abc")
        play = suite.player("random", 5)
        self.assertEqual([json.loads(play(observation))["text"] for _ in range(2)], ["turn 1", "turn 2"])

    def test_wrong_environments_are_refused(self):
        cases = [
            (lambda: SuiteAdapter(Parrot()), TypeError, "pass its class"),
            (lambda: SuiteAdapter(int), TypeError, "no `reset`"),
            (lambda: SuiteAdapter(type("No", (), {"reset": lambda self: ""})), TypeError, "neither `step`"),
            (lambda: SuiteAdapter(Parrot, tasks=[]), ValueError, "at least one task"),
            (lambda: SuiteAdapter(Parrot, tasks=[object()]), TypeError, "JSON"),
            (lambda: SuiteAdapter(Parrot, tasks=[1, 2], held_out=[2]), ValueError, "in both"),
            (lambda: SuiteAdapter(Parrot, held_out=1.5), ValueError, "between 0 and 1"),
        ]
        for make, kind, text in cases:
            with self.assertRaises(kind) as caught:
                make()
            self.assertIn(text, str(caught.exception))

    def test_an_exception_is_described_with_its_line(self):
        class Broken:
            def reset(self):
                return str(1 / 0)

            def step(self, action):
                return "", 0.0, True

        text = ""
        try:
            SuiteAdapter(Broken).begin(0).reset(1)
        except ZeroDivisionError as error:
            text = describe(error)
        self.assertRegex(text, r"^ZeroDivisionError: division by zero \(line \d+ of .*test_environment.py, in reset: return str\(1 / 0\)\)$")


class turnwise_player:
    """A player that remembers its turns."""

    def __init__(self, random):
        self.turn = 0

    def act(self, observation):
        self.turn += 1
        return f"turn {self.turn}"


class Trl(unittest.TestCase):
    def setUp(self):
        rows = [{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}], "fruit": "fig"}]
        self.suite = SuiteAdapter(Fruit, tasks=rows, held_out=[{"prompt": "Hi.", "fruit": "kiwi"}])

    def test_public_methods_are_tools(self):
        specs = {spec["name"]: spec for spec in json.loads(self.suite.tools)}
        self.assertEqual(set(specs), {"guess", "peek"})
        self.assertEqual(specs["guess"]["description"], "Guesses a fruit.")
        self.assertEqual(
            specs["guess"]["parameters"],
            {
                "type": "object",
                "properties": {
                    "fruit": {"type": "string", "description": "The name of the fruit, in lower case."},
                    "sure": {"type": "boolean", "description": "Whether you are sure."},
                },
                "required": ["fruit"],
            },
        )

    def test_an_episode(self):
        episode = self.suite.begin(0)
        messages = json.loads(episode.reset(1))["messages"]
        self.assertEqual([message["content"] for message in messages], ["Be brief.", "Hello. Which fruit is it?"])
        step = json.loads(episode.step(calls(call("guess", fruit="fig"), call("peek", place=1))))["next"]
        self.assertEqual(
            step["observation"]["messages"],
            [
                {"role": "tool", "tool_call_id": "id_guess", "content": "right"},
                {"role": "tool", "tool_call_id": "id_peek", "content": "i"},
            ],
        )
        self.assertEqual((step["reward"], step["faults"]), (None, 0))
        step = json.loads(episode.step('{"text": "It is a fig."}'))
        self.assertEqual(step, {"end": {"reward": 1.0, "ending": "terminated", "solved": True}})
        self.assertEqual(json.loads(self.suite.begin(1).reset(1))["messages"][0]["content"], "Hi. Which fruit is it?")

    def test_an_exception_of_a_tool_is_a_message(self):
        episode = self.suite.begin(0)
        episode.reset(1)
        step = json.loads(episode.step(calls(call("guess", fruit="durian"), call("peek", place=99))))["next"]
        texts = [message["content"] for message in step["observation"]["messages"]]
        self.assertEqual(texts, ["{'error': 'no durian in here'}", "{'error': 'string index out of range'}"])
        self.assertEqual(step["faults"], 0)

    def test_mistakes_of_form_cost_faults(self):
        episode = self.suite.begin(0)
        episode.reset(1)
        wrong = {"malformed": {"id": "c", "raw": "{", "error": "decode", "message": "no JSON"}}
        attempts = [call("reset"), call("_hidden"), call("guess"), call("guess", fruit="fig", loud=1), wrong]
        step = json.loads(episode.step(calls(*attempts)))["next"]
        texts = [message["content"] for message in step["observation"]["messages"]]
        self.assertEqual(step["faults"], 5)
        self.assertEqual(texts[0], "{'error': 'Tool reset not found.'}")
        self.assertIn("missing a required argument: 'fruit'", texts[2])
        self.assertEqual(texts[4], "{'error': 'no JSON'}")

    def test_an_episode_at_the_limit_is_scored(self):
        self.suite.turn_limit = 2
        episode = self.suite.begin(0)
        episode.reset(1)
        episode.step(calls(call("guess", fruit="fig")))
        step = json.loads(episode.step(calls(call("guess", fruit="kiwi"))))
        self.assertEqual(step["end"], {"reward": 1.0, "ending": "truncated", "solved": True})


class Schemas(unittest.TestCase):
    def test_of_type_hints(self):
        class Colour(enum.Enum):
            RED = "red"

        def tool(
            a: int,
            b: list[str],
            c: Optional[float] = None,
            d: Literal["x", "y"] = "x",
            e: "dict[str, int] | None" = None,
            f: Colour = Colour.RED,
        ) -> None:
            """Does it."""

        # The names of a function's own scope are not seen by string annotations.
        tool.__annotations__["f"] = Colour
        properties = tool_spec(tool)["parameters"]["properties"]
        self.assertEqual(properties["a"], {"type": "integer"})
        self.assertEqual(properties["b"], {"type": "array", "items": {"type": "string"}})
        self.assertEqual(properties["c"], {"type": "number", "nullable": True})
        self.assertEqual(properties["d"], {"type": "string", "enum": ["x", "y"]})
        self.assertEqual(properties["e"], {"type": "object", "nullable": True})
        self.assertEqual(properties["f"], {"type": "string", "enum": ["red"]})

    def test_a_parameter_without_a_type_is_refused(self):
        def tool(a) -> None:
            """Does it."""

        with self.assertRaisesRegex(TypeError, "the parameter `a` of the tool `tool` has no type hint"):
            tool_spec(tool)
        tool.__annotations__["a"] = object
        with self.assertRaisesRegex(TypeError, "JSON has no schema"):
            tool_spec(tool)


if __name__ == "__main__":
    unittest.main()
