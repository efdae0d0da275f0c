"""Objectives and advantages."""

import unittest

import numpy as np

import turnwise


class Objectives(unittest.TestCase):
    def test_the_gradient_of_gspo_token_is_that_of_the_paper(self):
        now = [np.array([-1.0, -2.0, -0.5]), np.array([-0.25])]
        then = [np.array([-1.25, -2.0, -0.5]), np.array([-0.25])]
        credit = [np.array([1.0, -1.0, 0.0]), 2.0]
        loss = turnwise.gspo_token(now, then, credit, clip_low=0.2, clip_high=0.2)
        ratio = np.exp(0.25 / 3)
        np.testing.assert_allclose(loss.gradients[0], [-ratio / 6, ratio / 6, 0.0], rtol=1e-15)
        np.testing.assert_allclose(loss.gradients[1], [-1.0], rtol=1e-15)
        np.testing.assert_allclose(loss.ratios, [ratio, 1.0], rtol=1e-15)
        self.assertEqual(loss.metrics["n_tokens"], 4)
        self.assertEqual(loss.metrics["clip_fraction"], 0.0)

    def test_a_ratio_above_the_range_moves_negative_advantages_alone(self):
        loss = turnwise.gspo_token([[-0.5] * 3], [[-0.75] * 3], [[1.0, 0.0, -1.0]])
        self.assertEqual(list(loss.gradients[0][:2]), [0.0, 0.0])
        self.assertAlmostEqual(loss.gradients[0][2], np.exp(0.25) / 3, places=15)
        self.assertEqual(loss.sequences[0].n_clipped_high, 1)
        self.assertAlmostEqual(loss.sequences[0].clip_fraction, 1 / 3)

    def test_gspo_is_the_derivative_of_its_value(self):
        random = np.random.default_rng(1)
        now = [-random.exponential(size=n) for n in (3, 5, 1)]
        then = [column + random.normal(0, 0.02, size=len(column)) for column in now]
        credit, settings = [1.5, -0.5, -1.0], {"clip_low": 0.2, "clip_high": 0.2}
        loss = turnwise.gspo(now, then, credit, **settings)
        for row, token in [(0, 1), (1, 4), (2, 0)]:
            values = []
            for change in (1e-6, -1e-6):
                moved = [column.copy() for column in now]
                moved[row][token] += change
                values.append(turnwise.gspo(moved, then, credit, **settings).loss)
            self.assertAlmostEqual((values[0] - values[1]) / 2e-6, loss.gradients[row][token], places=8)

    def test_uniform_advantages_make_the_two_equal(self):
        now, then = [[-1.0, -0.3], [-2.0]], [[-1.2, -0.4], [-1.9]]
        token = turnwise.gspo_token(now, then, [0.7, -0.2], clip_low=0.05, clip_high=0.05)
        whole = turnwise.gspo(now, then, [0.7, -0.2], clip_low=0.05, clip_high=0.05)
        self.assertEqual(token.loss, whole.loss)
        for one, other in zip(token.gradients, whole.gradients):
            np.testing.assert_array_equal(one, other)

    def test_every_published_objective_is_there(self):
        for name, source in turnwise.objectives().items():
            self.assertTrue(source)
            loss = turnwise.step_loss(name, [[-0.9, -1.1]], [[-1.0, -1.0]], [1.0], turns=[[1, 1]])
            self.assertTrue(np.isfinite(loss.loss), name)

    def test_a_penalty_pulls_towards_the_reference(self):
        columns = ([[-0.5, -0.5]], [[-0.5, -0.5]], [[0.0, 0.0]])
        loss = turnwise.step_loss("gspo_token", *columns, reference=[[-1.0, -0.25]], kl_beta=0.1)
        self.assertGreater(loss.gradients[0][0], 0)
        self.assertLess(loss.gradients[0][1], 0)

    def test_arrays_can_be_written_to(self):
        gradient = turnwise.gspo_token([[-1.0]], [[-1.0]], [1.0]).gradients[0]
        gradient *= 2
        self.assertEqual(gradient[0], -2.0)

    def test_wrong_input_is_named(self):
        cases = [
            (lambda: turnwise.gspo_token([[-1.0]], [[-1.0]], []), "advantages has 0 entries for 1 sequences"),
            (lambda: turnwise.gspo_token([[[-1.0]]], [[-1.0]], [1.0]), "logprobs of sequence 0 has 2 dimensions"),
            (lambda: turnwise.gspo_token([[-1.0]], [[-1.0, -1.0]], [1.0]), "sequence 0"),
            (lambda: turnwise.gspo_token([[-1.0], [np.nan]], [[-1.0], [-1.0]], [1.0, 1.0]), "sequence 1: logprob of token 0 is NaN"),
            (lambda: turnwise.gspo([[-1.0, -1.0]], [[-1.0, -1.0]], [[1.0, 0.0]]), "use gspo_token"),
            (lambda: turnwise.step_loss("gspoo", [], [], []), "no objective is called `gspoo`; known are gspo,"),
            (lambda: turnwise.step_loss("dapo", [], [], [], clip_low=0.1), "published settings"),
            (lambda: turnwise.step_loss("gspo_turn", [[-1.0]], [[-1.0]], [1.0]), "turns"),
            (lambda: turnwise.gspo_token([], [], [], clip_low=2.0), "clip"),
            (lambda: turnwise.gspo_token([], [], [], length_weight="long"), "known are mean, tokens and sqrt_tokens"),
        ]
        for call, text in cases:
            with self.assertRaises(ValueError) as caught:
                call()
            self.assertIn(text, str(caught.exception))


class Advantages(unittest.TestCase):
    def test_of_a_group(self):
        np.testing.assert_allclose(turnwise.mean_std([2.0, 0.0], std="population"), [1.0, -1.0])
        np.testing.assert_array_equal(turnwise.mean_std([0.1] * 7), np.zeros(7))
        np.testing.assert_allclose(turnwise.mean_only(np.array([1.0, 0.0, 0.5])), [0.5, -0.5, 0.0])
        np.testing.assert_allclose(turnwise.leave_one_out([1.0, 0.0, 0.5]), [0.75, -0.75, 0.0])
        with self.assertRaisesRegex(ValueError, "reward of member 1 is inf"):
            turnwise.mean_only([1.0, np.inf])

    def test_of_turns(self):
        to_go = [turnwise.reward_to_go([0.0, 1.0]), turnwise.reward_to_go([0.0])]
        credit = turnwise.minus_mean_return(to_go)
        np.testing.assert_allclose(credit[0], [0.5, 0.5])
        np.testing.assert_allclose(turnwise.minus_mean_return_of_others(to_go)[1], [-1.0])
        np.testing.assert_allclose(turnwise.minus_mean_return_at_turn([[3.0, 2.0], [1.0, 1.0], [0.0]])[0], [2.5, 1.0])
        np.testing.assert_allclose(turnwise.mix([1.0, -1.0], [[0.5, -0.5], [0.0]], turn_weight=0.5)[0], [1.25, 0.75])
        np.testing.assert_allclose(turnwise.spread_over_tokens([0.5, -1.0], [2, 1]), [0.5, 0.5, -1.0])
        np.testing.assert_allclose(turnwise.broadcast_outcome([0.5, -0.5], [2, 1])[0], [0.5, 0.5])
        step = turnwise.by_anchor_state([[1.0, 1.0], [0.0]], [["lobby", "office"], ["lobby"]])
        np.testing.assert_allclose(step[0], [0.5, 0.0])


if __name__ == "__main__":
    unittest.main()
