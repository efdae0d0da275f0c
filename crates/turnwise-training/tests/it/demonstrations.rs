//! Demonstrations whose turns begin with forced tokens.

use turnwise_environment::{Action, Message, ToolSpec};
use turnwise_rollout::{Bridged, EndedTurn, Preface, RenderError, Rendered, Renderer, Said};
use turnwise_testkit::AlphabetRenderer;
use turnwise_training::{Demonstration, Fitting, Row, demonstrate};
use turnwise_trajectory::TokenId;

use crate::support::{LETTERS, block_on, echoes};

/// Says the same in every turn.
struct Parrot(&'static str);

impl turnwise_environment::Demonstrator for Parrot {
    fn act(&mut self, _observation: &turnwise_environment::Observation) -> Action {
        Action::text(self.0)
    }
}

/// A renderer whose turns begin with the first letter. It refuses a history in which a turn of the policy does not.
struct Prefilled(AlphabetRenderer);

impl Prefilled {
    fn prefill(&self) -> Vec<TokenId> {
        self.0.write(&Action::text(&LETTERS[..1]))[..1].to_vec()
    }

    fn check(&self, history: &[Said<'_>]) -> Result<(), RenderError> {
        let mut turns = history.iter().filter_map(|said| said.drawn);
        match turns.find(|turn| !turn.starts_with(&self.prefill())) {
            Some(turn) => Err(RenderError(format!("{turn:?} lacks the prefill"))),
            None => Ok(()),
        }
    }
}

impl Renderer for Prefilled {
    fn fingerprint(&self) -> &str {
        self.0.fingerprint()
    }

    fn render(&self, said: &[Said<'_>], tools: &[ToolSpec]) -> Result<Rendered, RenderError> {
        self.check(said)?;
        Ok(Rendered { prefill: self.prefill(), ..self.0.render(said, tools)? })
    }

    fn bridge(
        &self,
        ended: EndedTurn<'_>,
        history: &[Said<'_>],
        new: &[Message],
    ) -> Result<Bridged, RenderError> {
        self.check(history)?;
        Ok(match self.0.bridge(ended, history, new)? {
            Bridged::Append(rendered) => {
                Bridged::Append(Rendered { prefill: self.prefill(), ..rendered })
            }
            Bridged::Rewrite => Bridged::Rewrite,
        })
    }

    fn write(&self, action: &Action) -> Vec<TokenId> {
        self.0.write(action)
    }

    fn parse(&self, turn: &[TokenId], tools: &[ToolSpec]) -> Action {
        self.0.parse(turn, tools)
    }

    fn shortens(&self, message: &Message, tools: &[ToolSpec]) -> bool {
        self.0.shortens(message, tools)
    }

    fn stop_tokens(&self) -> &[TokenId] {
        self.0.stop_tokens()
    }

    fn text(&self, ids: &[TokenId]) -> String {
        self.0.text(ids)
    }
}

#[test]
fn the_forced_beginning_of_a_turn_is_in_history_and_is_no_target() {
    let renderer = Prefilled(AlphabetRenderer::new(LETTERS));
    let text = &LETTERS[..2];
    let tasks = echoes(3, false);
    let demonstration = block_on(demonstrate(
        &tasks,
        2,
        &|_| Box::new(Parrot(text)),
        &renderer,
        &Preface::default(),
        3,
        7,
    ))
    .expect("the turns begin with the prefill");
    let [row] = &demonstration.rows[..] else { panic!("one seat acts") };
    // Of each turn, the second letter and the end are imitated.
    let rest = &renderer.write(&Action::text(text))[1..];
    assert_eq!(row.targets.len(), 3 * rest.len());
    for turn in row.targets.chunks(rest.len()) {
        let first = turn[0].position;
        assert_eq!(row.ids[first - 1..first], renderer.prefill());
        assert_eq!(&row.ids[first..first + rest.len()], rest);
    }
}

#[test]
fn demonstrations_that_are_longer_than_a_context_are_left_out_and_counted() {
    let of = |lengths: &[usize]| Demonstration {
        rows: lengths
            .iter()
            .map(|length| Row { ids: vec![0; *length], ..Row::default() })
            .collect(),
        reward: 0.0,
        solved: false,
        is_over: true,
    };
    let all = || vec![of(&[3, 9]), of(&[7]), of(&[5, 4])];
    let fitting = |limit| {
        let Fitting { rows, n_longer, shortest_longer } = Fitting::new(all(), limit);
        let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
        (lengths, n_longer, shortest_longer)
    };
    assert_eq!(fitting(9), (vec![3, 9, 7, 5, 4], 0, 0));
    assert_eq!(fitting(5), (vec![3, 5, 4], 2, 7));
    assert_eq!(fitting(2), (vec![], 5, 3));
}
