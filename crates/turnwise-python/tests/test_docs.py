"""Documentation: examples say what happens, and everything public has a docstring."""

import doctest
import inspect
import unittest

import turnwise
import turnwise._objective


class Docs(unittest.TestCase):
    def test_examples_give_what_they_say(self):
        result = doctest.testmod(turnwise._objective)
        self.assertGreater(result.attempted, 1)
        self.assertEqual(result.failed, 0)

    def test_everything_public_is_documented(self):
        for name in turnwise.__all__:
            thing = getattr(turnwise, name)
            self.assertTrue(inspect.getdoc(thing), name)
            for member, function in inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else []:
                if not member.startswith("_"):
                    self.assertTrue(inspect.getdoc(function), f"{name}.{member}")


if __name__ == "__main__":
    unittest.main()
