use std::fmt;

use crate::Operation;
use crate::calc::Call;

/// Operations one after the other, strictly from left to right: `7 + 5 * 3` is 36.
///
/// All numbers fit comfortably into 64 bits: [`CalculatorSettings`](crate::CalculatorSettings) bounds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// The first operand.
    pub first: i64,
    /// The operations in order, each with its right operand.
    pub steps: Vec<(Operation, i64)>,
}

impl Expression {
    /// Returns the result of each operation; the last one is the answer.
    ///
    /// ```
    /// use turnwise_calculator::{Expression, Operation};
    ///
    /// let steps = vec![(Operation::Add, 5), (Operation::Multiply, 3)];
    /// let expression = Expression { first: 7, steps };
    /// assert_eq!(expression.to_string(), "7 + 5 * 3");
    /// assert_eq!(expression.values().collect::<Vec<_>>(), [12, 36]);
    /// ```
    pub fn values(&self) -> impl Iterator<Item = i64> {
        self.calls().map(|call| call.op.apply(call.a, call.b).unwrap_or_default())
    }

    /// Returns the value of the expression.
    #[must_use]
    pub fn answer(&self) -> i64 {
        self.values().last().unwrap_or(self.first)
    }

    /// Returns the calls that compute the expression, in order.
    pub(crate) fn calls(&self) -> impl Iterator<Item = Call> {
        self.steps.iter().scan(self.first, |value, &(op, b)| {
            let call = Call { a: *value, op, b };
            *value = op.apply(*value, b)?;
            Some(call)
        })
    }

    /// Parses the output of [`Display`](fmt::Display).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let first = words.next()?.parse().ok()?;
        let mut steps = Vec::new();
        while let Some(symbol) = words.next() {
            steps.push((Operation::from_symbol(symbol)?, words.next()?.parse().ok()?));
        }
        Some(Self { first, steps })
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.first)?;
        self.steps.iter().try_for_each(|(op, b)| write!(formatter, " {op} {b}"))
    }
}
