//! SPO keeps the contract of objectives, and what it claims.

use own_objective::Spo;
use turnwise_testkit::objectives::{
    check_contract, check_gradient, check_on_policy, check_zero_advantage, steps, tokens,
};
use turnwise_testkit::proptest::prelude::*;

const SPO: Spo = Spo { epsilon: 0.2 };

proptest! {
    #[test]
    fn it_keeps_the_contract(step in steps()) {
        check_contract(&SPO, &step)?;
    }

    #[test]
    fn its_gradient_is_the_derivative_of_its_loss(tokens in tokens()) {
        check_gradient(&SPO, &tokens)?;
    }

    #[test]
    fn it_is_the_policy_gradient_before_the_policy_moves(tokens in tokens()) {
        check_on_policy(&SPO, &tokens)?;
        check_zero_advantage(&SPO, &tokens, 0)?;
    }
}
