use crate::{CalculatorSettings, Expression, Operation};

/// All expressions that the settings allow, counted and indexed without being stored.
///
/// An expression is chosen from left to right, and the remaining choices depend on the value so far alone. So the
/// number of ways to continue is known for each value and number of operations, and the expression with a given index
/// is found by walking down from the first operand.
pub(crate) struct Space {
    /// The number of ways to continue: `n_ways[operations left][value so far]`.
    n_ways: Vec<Vec<u64>>,
    max_operand: i64,
    max_value: i64,
}

impl Space {
    /// Creates the space of valid settings; the largest settings have fewer than 2^40 expressions.
    pub(crate) fn new(settings: &CalculatorSettings) -> Self {
        let max_value = i64::from(settings.max_value);
        // With no operation left, an expression can only end: one way.
        let done = (0..=max_value).map(|_| 1).collect();
        let max_operand = i64::from(settings.max_operand);
        let mut space = Self { n_ways: vec![done], max_operand, max_value };
        for _ in 0..settings.operations {
            let n_ways = (0..=max_value).map(|value| space.n_ways_on(value)).collect();
            space.n_ways.push(n_ways);
        }
        space
    }

    /// Returns the number of expressions.
    pub(crate) fn len(&self) -> u64 {
        self.operands().map(|first| self.n_ways(self.operations(), first)).sum()
    }

    /// Returns the expression with this index, which must be below `len`.
    pub(crate) fn expression(&self, index: u64) -> Expression {
        let n_left = self.operations();
        let ways = self.operands().map(|first| (first, self.n_ways(n_left, first)));
        let (first, mut index) = walk(ways, index);
        let mut value = first;
        let mut steps = Vec::with_capacity(n_left);
        for n_left in (0..n_left).rev() {
            let ways =
                self.choices(value).map(|(step, next)| ((step, next), self.n_ways(n_left, next)));
            let ((step, next), rest) = walk(ways, index);
            steps.push(step);
            (value, index) = (next, rest);
        }
        Expression { first, steps }
    }

    fn operations(&self) -> usize {
        self.n_ways.len() - 1
    }

    fn operands(&self) -> impl Iterator<Item = i64> + use<> {
        1..=self.max_operand
    }

    /// Returns the number of ways to continue with one operation more than `n_ways` covers so far.
    fn n_ways_on(&self, value: i64) -> u64 {
        self.choices(value).map(|(_, next)| self.n_ways(self.operations(), next)).sum()
    }

    fn n_ways(&self, n_left: usize, value: i64) -> u64 {
        usize::try_from(value).map_or(0, |value| self.n_ways[n_left][value])
    }

    /// Returns every operation whose result stays in range, with that result.
    fn choices(&self, value: i64) -> impl Iterator<Item = ((Operation, i64), i64)> {
        let steps = Operation::ALL.into_iter().flat_map(|op| self.operands().map(move |b| (op, b)));
        steps.filter_map(move |(op, b)| {
            let next = op.apply(value, b).filter(|next| (0..=self.max_value).contains(next))?;
            Some(((op, b), next))
        })
    }
}

/// Returns the choice that contains an index, and the index among the choice's ways.
fn walk<T>(ways: impl Iterator<Item = (T, u64)>, mut index: u64) -> (T, u64) {
    for (choice, n_ways) in ways {
        if index < n_ways {
            return (choice, index);
        }
        index -= n_ways;
    }
    unreachable!("the index is below the number of ways")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Space;
    use crate::CalculatorSettings;

    #[test]
    fn every_index_is_another_expression_in_range() {
        let settings = CalculatorSettings { max_value: 30, ..CalculatorSettings::default() };
        let space = Space::new(&settings);
        let mut seen = BTreeSet::new();
        for index in 0..space.len() {
            let expression = space.expression(index);
            assert!(expression.values().all(|value| (0..=30).contains(&value)), "{expression}");
            assert_eq!(expression.values().count(), 2);
            seen.insert(expression.to_string());
        }
        assert_eq!(seen.len() as u64, space.len());
    }

    #[test]
    fn the_count_is_that_of_trying_them_all() {
        let space = Space::new(&CalculatorSettings { operations: 1, ..Default::default() });
        // Sums and products of two digits all fit; a difference must not be negative.
        assert_eq!(space.len(), 81 + 81 + 45);
    }

    #[test]
    fn the_largest_space_can_be_counted() {
        let settings = CalculatorSettings {
            operations: 6,
            max_operand: 20,
            max_value: 999,
            ..Default::default()
        };
        let space = Space::new(&settings);
        assert!(space.len() < 1 << 40);
        assert_eq!(space.expression(space.len() - 1).steps.len(), 6);
    }
}
