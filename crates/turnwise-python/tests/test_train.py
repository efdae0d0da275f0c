"""Training from Python, and the files of runs."""

import contextlib
import io
import os
import signal
import tempfile
import threading
import time
import unittest

import numpy as np

import turnwise
from environments import SMALL, Fruit, Parrot


class Training(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.before = os.getcwd()
        os.chdir(self.folder.name)

    def tearDown(self):
        os.chdir(self.before)
        self.folder.cleanup()

    def test_an_environment_in_python_is_learnt(self):
        told = []
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run = turnwise.train(
                Parrot,
                SMALL,
                run={"steps": 60},
                rollout={"groups_per_step": 16},
                observer=lambda event, content: told.append((event, content)),
            )
        self.assertLess(run.before.success_rate, 0.65)
        self.assertGreater(run.after.success_rate, 0.8)
        self.assertEqual((run.state, run.path), ("finished", os.path.join("runs", "parrot-0001")))
        self.assertEqual(len([event for event, _ in told if event == "step"]), 60)
        text = printed.getvalue()
        self.assertIn("held-out success before: ", text)
        self.assertIn("\nstep 60/60  reward ", text)
        self.assertNotIn("\nnext ", text)
        self.check_files(run)
        self.check_evaluation(run)

    def check_files(self, run):
        metrics = run.metric_arrays()
        np.testing.assert_array_equal(metrics["step"], np.arange(60))
        self.assertGreater(metrics["reward/mean"][-5:].mean(), metrics["reward/mean"][:5].mean())
        self.assertEqual(run.config["environment"]["name"], "parrot")
        self.assertEqual(run.config["limits"]["max_turns"], 4)
        self.assertEqual(run.events()[0]["event"], "start")
        self.assertEqual(run.damage(), [])
        self.assertIn("verdict", run.summary)
        names = [name for name, _ in run._successes()]
        self.assertEqual((names[0], names[-1]), ("before", "after"))
        episodes = run.episodes(step=59)
        self.assertEqual(len(episodes), 4)
        episode = episodes[0]
        self.assertEqual((episode.environment, episode.outcome, len(episode.turns)), ("parrot", "done", 2))
        self.assertEqual(episode.reward, sum(turn.reward for turn in episode.turns))
        self.assertEqual([message["role"] for message in episode.messages], ["user", "assistant"] * 2)
        self.assertTrue((episode.versions > 30).all() and (episode.logprobs <= 0).all())
        self.assertEqual(len(episode.ids), sum(len(turn.ids) for turn in episode.turns))
        self.assertTrue(all(turn.trains.all() for turn in episode.turns))
        self.assertEqual(len(run.episodes(step=59)) * len(run.steps()), len(run.episodes()))

    def check_evaluation(self, run):
        evaluated = turnwise.evaluate(run, Parrot, eval={"episodes": 16})
        self.assertEqual(evaluated.success.episodes, 16)
        self.assertGreater(evaluated.success.success_rate, 0.6)
        episode = evaluated.episodes[0]
        learner = turnwise.Learner(run.checkpoint())
        rows = [turn.row() for turn in episode.turns]
        for logprobs, turn in zip(learner.logprobs(rows), episode.turns):
            np.testing.assert_allclose(logprobs, turn.logprobs, atol=1e-3)
        turn = episode.turns[0]
        sample = run.policy().sample(turn.prompt, 4, temperature=0)
        self.assertEqual(sample.ids[0], learner_choice(learner, turn.prompt))

    def test_metrics_are_a_data_frame_where_pandas_is(self):
        run = turnwise.train("guess", SMALL, run={"steps": 1}, eval={"episodes": 4}, quiet=True, directory="mine")
        metrics = run.metrics()
        try:
            import pandas
        except ImportError:
            self.assertIsInstance(metrics, dict)
        else:
            self.assertIsInstance(metrics, pandas.DataFrame)
            self.assertEqual(list(metrics.index), [0])
            self.assertEqual(list(run.evaluations()["name"]), ["before", "after"])
        self.assertEqual(run.path, "mine")

    def test_trls_contract_trains(self):
        rows = [{"prompt": "Guess.", "fruit": "kiwi", "n": n} for n in range(12)]
        settings = {**SMALL, "limits": {"max_turns": 3, "max_turn_tokens": 48, "max_context_tokens": 512}}
        run = turnwise.train(
            Fruit, settings, tasks=rows, run={"steps": 2}, warm_start={"steps": 30}, eval={"episodes": 8}, quiet=True
        )
        episodes = run.episodes(step=1)
        roles = {message["role"] for episode in episodes for message in episode.messages}
        self.assertTrue({"user", "assistant", "tool"} <= roles, roles)
        self.assertTrue(all(episode.reward in (0.0, 1.0) for episode in episodes))

    def test_an_exception_of_the_environment_is_a_fault_and_no_reward(self):
        told = []

        class Fragile(Parrot):
            def step(self, action):
                if is_evaluated(told) and self.task["number"] < 5 and action.strip() == "a":
                    raise OSError("the parrot is gone")
                return super().step(action)

        run = turnwise.train(
            Fragile, SMALL, run={"steps": 3}, quiet=True, observer=lambda event, content: told.append((event, content))
        )
        faults = [fault for event, content in told if event == "step" for fault in content["faults"]]
        self.assertTrue(faults)
        self.assertIn("OSError: the parrot is gone (line ", str(faults[0]))
        self.assertIn("test_train.py, in step: raise OSError", str(faults[0]))
        self.assertEqual(run.state, "finished")

    def test_an_environment_that_always_breaks_ends_the_run(self):
        told = []

        class Broken(Parrot):
            def step(self, action):
                return self.nothing if is_evaluated(told) else super().step(action)

        with self.assertRaises(turnwise.TurnwiseError) as caught:
            turnwise.train(
                Broken, SMALL, run={"steps": 2}, quiet=True, observer=lambda event, content: told.append((event, content))
            )
        text = str(caught.exception)
        self.assertIn("AttributeError: 'Broken' object has no attribute 'nothing' (line ", text)
        self.assertIsInstance(caught.exception, turnwise.TooManyFaults)
        self.assertIn("turnwise.check(environment)", text)
        self.assertIn('turnwise.resume("runs/broken-0001", environment)', text)

    def test_an_exception_of_the_expert_is_raised_as_it_is(self):
        class Confused(Parrot):
            @staticmethod
            def expert(observation, random):
                raise LookupError("what?")

        with self.assertRaisesRegex(LookupError, "what?"):
            turnwise.train(Confused, SMALL, run={"steps": 1}, quiet=True)

    def test_control_c_inside_of_the_environment_is_raised(self):
        class Interrupted(Parrot):
            def step(self, action):
                raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            turnwise.train(Interrupted, SMALL, run={"steps": 1}, quiet=True)

    def test_an_environment_may_ask_another_model(self):
        judge = turnwise.Learner.random(32).policy()

        class Judged(Parrot):
            def step(self, action):
                observation, *rest = super().step(action) if self.turn == 0 else ("", 0.0, True)
                return (observation + str(judge.sample([1], 1, seed=3).ids[0]), *rest)

        told = []

        def observer(event, content):
            if event == "step":
                told.append(judge.sample([1], 2, seed=3).ids)

        run = turnwise.train(Judged, SMALL, run={"steps": 1}, quiet=True, observer=observer)
        said = run.episodes(step=0)[0].messages[2]["content"]
        self.assertEqual(said[1:], str(told[0][0]))

    def test_an_exception_of_the_observer_stops_the_run(self):
        def observer(event, content):
            if event == "step":
                raise RuntimeError("seen enough")

        with self.assertRaisesRegex(RuntimeError, "seen enough"):
            turnwise.train(Parrot, SMALL, run={"steps": 50}, quiet=True, observer=observer)
        run = turnwise.Run("runs/parrot-0001")
        self.assertEqual(run.state, "stopped")
        self.assertLess(len(run.metric_arrays()["step"]), 50)

    def test_settings_are_checked_as_by_the_command(self):
        cases = [
            ({"train": {"learning_rat": 1}}, "unknown key `learning_rat`", "did you mean `learning_rate`?"),
            ({"rollout.group_size": 0}, "`rollout.group_size`", ""),
            ({"environment": {"options": {"size": 3}}}, "unknown option `size`", "has no options"),
        ]
        for settings, text, help in cases:
            with self.assertRaises(turnwise.Refused) as caught:
                turnwise.train(Parrot, settings, quiet=True)
            self.assertIn(text, str(caught.exception))
            self.assertIn(help, str(caught.exception))
            self.assertEqual(caught.exception.exit_code, 2)
        with open("mine.toml", "w") as file:
            file.write("[run]\nsteps = -1\n")
        with self.assertRaisesRegex(turnwise.Refused, "mine.toml:2"):
            turnwise.train(Parrot, "mine.toml", quiet=True)
        with self.assertRaisesRegex(turnwise.Refused, "no environment is called `gues`"):
            turnwise.train("gues", quiet=True)
        with self.assertRaisesRegex(ValueError, "turnwise has an environment called `guess` already"):
            turnwise.train(Parrot, name="guess", quiet=True)
        with self.assertRaisesRegex(ValueError, "divides the 2 tasks into"):
            turnwise.train(Parrot, tasks=Parrot.tasks[:2], held_out=0.01, quiet=True)
        self.assertFalse(os.path.exists("runs"))

    def test_control_c_stops_with_a_checkpoint_and_resume_goes_on(self):
        steps = threading.Event()

        def observer(event, content):
            if event == "step":
                steps.set()

        def interrupt():
            steps.wait(60)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with self.assertRaises(KeyboardInterrupt):
            turnwise.train(Parrot, SMALL, run={"steps": 400}, quiet=True, observer=observer)
        thread.join()
        run = turnwise.Run("runs/parrot-0001")
        done = len(run.metric_arrays()["step"])
        self.assertEqual(run.state, "stopped")
        self.assertTrue(0 < done < 400)
        again = turnwise.resume(run, Parrot, steps=done + 2, quiet=True)
        self.assertEqual(again.state, "finished")
        self.assertEqual(len(again.metric_arrays()["step"]), done + 2)

    def test_python_goes_on_while_rust_works(self):
        ticks, is_over = [], threading.Event()

        def tick():
            while not is_over.is_set():
                ticks.append(time.monotonic())
                time.sleep(0.005)

        thread = threading.Thread(target=tick)
        thread.start()
        began = time.monotonic()
        turnwise.train(Parrot, SMALL, run={"steps": 3}, quiet=True)
        taken = time.monotonic() - began
        is_over.set()
        thread.join()
        self.assertGreater(len(ticks), taken / 0.1)


def is_evaluated(told):
    """Returns whether the evaluation before training is over."""
    return any(event == "note" and content["text"].startswith("held-out success before") for event, content in told)


def learner_choice(learner, prompt):
    """Returns the most likely next id."""
    start = len(prompt)
    rows = [turnwise.Row([*prompt, id], [start]) for id in range(learner.vocab_size)]
    return int(np.argmax([logprobs[0] for logprobs in learner.logprobs(rows)]))


class Contract(unittest.TestCase):
    def test_an_environment_that_keeps_its_contract_passes(self):
        checks = turnwise.check(Parrot, expert=lambda observation, random: observation)
        self.assertGreater(len(checks), 10)
        self.assertEqual([check for check in checks if not check.passed], [])

    def test_what_is_wrong_is_named(self):
        class Loose(Parrot):
            def reset(self, task):
                return f"{super().reset(task)} {id(self)}"

        failed = [check for check in turnwise.check(Loose, expert=lambda observation, random: "a") if not check.passed]
        self.assertTrue(failed)


class Runs(unittest.TestCase):
    def test_a_directory_without_a_run_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(ValueError, folder):
                turnwise.Run(folder)


if __name__ == "__main__":
    unittest.main()
