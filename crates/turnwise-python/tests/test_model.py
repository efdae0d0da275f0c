"""Policy, learner and tokenizer."""

import os
import tempfile
import unittest

import numpy as np

import turnwise


class Models(unittest.TestCase):
    def setUp(self):
        self.learner = turnwise.Learner.random(32, seed=3)
        self.policy = self.learner.policy()

    def test_tokens_are_a_function_of_the_seed(self):
        one = self.policy.sample([1, 2, 3], 8, seed=7)
        np.testing.assert_array_equal(one.ids, self.policy.sample([1, 2, 3], 8, seed=7).ids)
        many = self.policy.sample_many([[1, 2, 3]] * 3, 8, seeds=[7, 8, 9])
        np.testing.assert_array_equal(one.ids, many[0].ids)
        np.testing.assert_array_equal(one.logprobs, many[0].logprobs)
        self.assertTrue(any(not np.array_equal(one.ids, other.ids) for other in many[1:]))
        self.assertEqual(one.stop, "max_tokens")
        # A turn that was cut goes on with the same random numbers.
        rest = self.policy.sample([1, 2, 3, *one.ids[:5]], 3, seed=7, first_index=5)
        np.testing.assert_array_equal(rest.ids, one.ids[5:])

    def test_a_stop_token_ends_the_turn(self):
        first = int(self.policy.sample([1], 1, seed=2).ids[0])
        sample = self.policy.sample([1], 8, seed=2, stop=[first])
        self.assertEqual((list(sample.ids), sample.stop), ([first], "end_of_turn"))

    def test_learner_and_policy_agree(self):
        for options in ({}, {"temperature": 0.5}, {"top_k": 4}):
            sample = self.policy.sample([1, 2, 3], 8, seed=1, **options)
            row = turnwise.Row.of([1, 2, 3], sample, options.get("temperature", 1.0))
            np.testing.assert_allclose(self.learner.logprobs([row])[0], sample.logprobs, atol=1e-4)

    def test_an_update_makes_rewarded_tokens_likelier_and_publishes(self):
        sample = self.policy.sample([1, 2, 3], 8, seed=1)
        row = turnwise.Row.of([1, 2, 3], sample)
        before = self.learner.logprobs([row])[0].sum()
        loss, updated = self.learner.update([row], [sample.logprobs], [1.0], learning_rate=1e-2, clip_high=0.2)
        self.assertTrue(updated.applied and updated.grad_norm > 0)
        self.assertAlmostEqual(loss.loss, -1.0, places=3)
        self.assertGreater(self.learner.logprobs([row])[0].sum(), before)
        self.assertEqual((self.policy.version, self.learner.version), (1, 1))
        self.assertEqual(set(self.policy.sample([1], 4).versions), {1})

    def test_weights_are_published_when_asked_and_no_sooner(self):
        row = turnwise.Row([1, 2], [1])
        self.learner.accumulate([row], lambda logprobs: [[-1.0]])
        self.learner.step(0.1)
        self.assertEqual(self.policy.version, 0)
        self.assertEqual(self.learner.publish(), 1)
        self.assertEqual(self.policy.version, 1)

    def test_a_checkpoint_goes_on(self):
        row = turnwise.Row([1, 2], [1])
        with tempfile.TemporaryDirectory() as folder:
            directory = os.path.join(folder, "model")
            self.learner.save(directory)
            before = self.learner.logprobs([row])[0][0]
            self.learner.accumulate([row], lambda logprobs: [[-1.0]])
            self.learner.step(0.1)
            self.assertNotEqual(self.learner.logprobs([row])[0][0], before)
            self.learner.load(directory, 5)
            self.assertEqual(self.learner.logprobs([row])[0][0], before)
            self.assertEqual(self.learner.version, 5)
            again = turnwise.Learner(directory)
            self.assertAlmostEqual(float(again.logprobs([row])[0][0]), float(before), places=5)
            self.assertEqual(again.n_weights, self.learner.n_weights)
            self.assertEqual(len(turnwise.Policy(directory).sample([1, 2], 3).ids), 3)

    def test_a_reference_stays(self):
        row = turnwise.Row([1, 2], [1])
        with self.assertRaisesRegex(ValueError, "keeps no reference"):
            self.learner.reference_logprobs([row])
        self.learner.keep_reference()
        before = self.learner.logprobs([row])[0][0]
        self.learner.accumulate([row], lambda logprobs: [[-1.0]])
        self.learner.step(0.1)
        self.assertAlmostEqual(float(self.learner.reference_logprobs([row])[0][0]), float(before), places=5)

    def test_an_exception_of_the_gradient_is_raised_and_adds_nothing(self):
        row = turnwise.Row([1, 2], [1])

        def broken(logprobs):
            raise KeyError("none")

        def recursive(logprobs):
            return self.learner.logprobs([row])

        with self.assertRaises(KeyError):
            self.learner.accumulate([row], broken)
        with self.assertRaisesRegex(RuntimeError, "the learner is in use"):
            self.learner.accumulate([row], recursive)
        with self.assertRaisesRegex(ValueError, "one number for every log-probability"):
            self.learner.accumulate([row], lambda logprobs: [[1.0, 2.0]])
        self.assertEqual(self.learner.step(0.1).grad_norm, 0.0)

    def test_a_gradient_function_may_sample(self):
        sampled = []

        def gradient(logprobs):
            sampled.append(self.policy.sample([1, 2], 3))
            return [[-1.0]]

        self.learner.accumulate([turnwise.Row([1, 2], [1])], gradient)
        self.assertEqual(len(sampled[0].ids), 3)

    def test_wrong_input_is_named(self):
        cases = [
            (lambda: self.policy.sample([1, 99], 4), ValueError, "99"),
            (lambda: self.policy.sample([1], 0), ValueError, "max_tokens"),
            (lambda: self.policy.sample([], 4), ValueError, "prompt"),
            (lambda: self.policy.sample([1.5], 4), ValueError, "ids are integers"),
            (lambda: self.policy.sample([1], 4, temperature=-1), ValueError, "temperature"),
            (lambda: self.learner.logprobs([turnwise.Row([1, 2], [0])]), ValueError, "row 0"),
            (lambda: turnwise.Learner.random(32, width=3), ValueError, "width"),
            (lambda: turnwise.Learner.random(32, optimizer={"beta": 1}), ValueError, "beta1"),
            (lambda: turnwise.Policy("/nowhere"), turnwise.Refused, "/nowhere"),
        ]
        for call, kind, text in cases:
            with self.assertRaises(kind) as caught:
                call()
            self.assertIn(text, str(caught.exception))


class Tokenizers(unittest.TestCase):
    def test_text_comes_back(self):
        tokenizer = turnwise.Tokenizer.train(["three plus five", "three plus one"], 300)
        ids = tokenizer.encode("three plus five é")
        self.assertLess(len(ids), 20)
        self.assertEqual(tokenizer.decode(ids), "three plus five é")
        end = tokenizer.token_id("<|im_end|>")
        self.assertNotIn(end, tokenizer.encode("<|im_end|>"))
        self.assertEqual(list(tokenizer.encode("<|im_end|>", markers=True)), [end])
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(os.path.join(folder, "new"))
            again = turnwise.Tokenizer(os.path.join(folder, "new"))
            np.testing.assert_array_equal(again.encode("three plus five"), tokenizer.encode("three plus five"))


if __name__ == "__main__":
    unittest.main()
