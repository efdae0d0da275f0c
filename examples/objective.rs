//! The objective alone: turn advantages in, the gradient of each token's log-probability out.

#![allow(clippy::print_stdout)] // programs that show something

use std::error::Error;

use turnwise::objective::{
    Advantages, Clip, GspoToken, LengthWeight, Objective, Sequence, evaluate_step,
};

fn main() -> Result<(), Box<dyn Error>> {
    // Two turns of two tokens; the first turn was good, the second bad. Environment tokens are not here at all.
    let drawn_with = [-1.2, -0.4, -2.0, -0.7];
    let now = [-1.1, -0.4, -2.1, -0.6];
    let credit = [1.0, 1.0, -1.0, -1.0];
    let sequence = Sequence::new(&now, &drawn_with, Advantages::PerToken(&credit))?;

    let objective = GspoToken { clip: Clip::PAPER_GSPO, length_weight: LengthWeight::Mean };
    let mut gradient = [0.0; 4];
    let evaluated = objective.evaluate(&sequence, &mut gradient)?;
    println!("log s      {:+.4}   (bounds -0.0003 and +0.0004)", evaluated.stats.log_ratio);
    println!("gradient   {gradient:+.3?}   the ratio is above the range: only the bad turn moves");

    let step = evaluate_step(&objective, &[sequence])?;
    println!("loss       {:+.4}", step.loss);
    println!("clipped    {:.0} %", 100.0 * step.metrics.clip_fraction_by_token().total());
    Ok(())
}
