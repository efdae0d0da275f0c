use std::fmt;

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 3] = [Self::Add, Self::Subtract, Self::Multiply];

    /// Returns the operation's symbol.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
        }
    }

    /// Returns the operation of a symbol; `None` for any other text.
    ///
    /// ```
    /// use turnwise_calculator::Operation;
    ///
    /// assert_eq!(Operation::from_symbol("*"), Some(Operation::Multiply));
    /// assert_eq!(Operation::from_symbol("/"), None);
    /// ```
    #[must_use]
    pub fn from_symbol(symbol: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.symbol() == symbol)
    }

    /// Returns the result; `None` if it exceeds 64 bits.
    ///
    /// ```
    /// use turnwise_calculator::Operation;
    ///
    /// assert_eq!(Operation::Subtract.apply(3, 5), Some(-2));
    /// assert_eq!(Operation::Multiply.apply(i64::MAX, 2), None);
    /// ```
    #[must_use]
    pub fn apply(self, a: i64, b: i64) -> Option<i64> {
        match self {
            Self::Add => a.checked_add(b),
            Self::Subtract => a.checked_sub(b),
            Self::Multiply => a.checked_mul(b),
        }
    }

    /// Returns whether the order of the operands is irrelevant.
    pub(crate) fn commutes(self) -> bool {
        self != Self::Subtract
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.symbol())
    }
}
