use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use turnwise_rollout::TokenConstraint;
use turnwise_trajectory::TokenId;

use crate::error::brief;
use crate::quiet::quietly;
use crate::spelling::spellings;
use crate::{ChatError, Tokenizer};

/// A constraint on the text of a turn: a regular expression, a JSON schema, or a Lark grammar.
///
/// The grammar covers the whole turn, from the first sampled token to the one that ends the turn. It is a grammar of
/// text: any tokens that spell an allowed text are allowed, also those of one character. A stop token is allowed
/// exactly where the text is complete. No other control token is allowed, except where a Lark grammar names it. A model
/// that thinks before it answers therefore needs a grammar with the thoughts in it:
///
/// ```text
/// start: <think> THOUGHTS </think> ANSWER
/// THOUGHTS: /[^<]*/
/// ANSWER: /[0-9]+/
/// ```
///
/// The grammar is compiled once. [`allowed`](TokenConstraint::allowed) keeps the states of recent turns, so that a turn
/// costs one step of the parser for each of its tokens; a turn whose state was dropped is parsed again from its start.
///
/// What is not supported:
///
/// - A tokenizer whose tokens have no bytes of their own, such as `WordPiece`. Byte-level BPE and `SentencePiece` are
///   supported. The latter drops a blank at the start of a turn when it decodes, so a grammar should not begin with one.
/// - A grammar whose lexer needs more than one character of lookahead: of such a language, only a part is allowed.
/// - JSON schemas with keywords that the compiler does not know; they are refused.
///
/// ```
/// use turnwise_chat::{Grammar, train_tokenizer};
/// use turnwise_rollout::TokenConstraint;
///
/// let tokenizer = train_tokenizer(["The guess is 7.".to_owned()], 300)?;
/// let stop = tokenizer.token_id("<|im_end|>").expect("a trained tokenizer has it");
/// let grammar = Grammar::regex(&tokenizer, "[1-3]|10", &[stop])?;
///
/// let ids = |text| tokenizer.encode_plain(text);
/// let allowed = |sampled: &[u32]| grammar.allowed(sampled).expect("a grammar constrains");
/// assert_eq!(allowed(&[]), [ids("1"), ids("2"), ids("3")].concat());
/// assert_eq!(allowed(&ids("1")), [ids("0"), vec![stop]].concat());
/// assert_eq!(allowed(&ids("2")), [stop]);
/// assert!(allowed(&ids("7")).is_empty());
/// # Ok::<(), turnwise_chat::ChatError>(())
/// ```
pub struct Grammar {
    /// The text of the grammar.
    source: String,
    /// The tokens that a grammar may allow within a turn: those with bytes.
    spelt: SimpleVob,
    /// The tokens that end a turn, in ascending order.
    stop: Vec<TokenId>,
    states: Mutex<States>,
}

impl Grammar {
    /// Compiles a regular expression, in the syntax of the `regex` crate, that the whole turn matches.
    ///
    /// # Errors
    /// [`ChatError::Grammar`] for an expression that cannot be read, or if there is no stop token;
    /// [`ChatError::Unsupported`] for a tokenizer whose tokens have no bytes of their own.
    ///
    /// ```
    /// use turnwise_chat::{Grammar, train_tokenizer};
    ///
    /// let tokenizer = train_tokenizer(["yes or no".to_owned()], 300)?;
    /// let stop = tokenizer.token_id("<|im_end|>").expect("a trained tokenizer has it");
    /// assert!(Grammar::regex(&tokenizer, "yes|no", &[stop]).is_ok());
    ///
    /// let error = Grammar::regex(&tokenizer, "(yes", &[stop]).unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read the grammar: "), "{error}");
    /// # Ok::<(), turnwise_chat::ChatError>(())
    /// ```
    pub fn regex(tokenizer: &Tokenizer, regex: &str, stop: &[TokenId]) -> Result<Self, ChatError> {
        let grammar = || TopLevelGrammar::from_regex(regex);
        Self::new(tokenizer, regex.to_owned(), grammar, stop)
    }

    /// Compiles a grammar in [llguidance's variant of Lark](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    /// The rule `start` is the turn. `<name>` is a control token of the tokenizer, but not a stop token, which comes by
    /// itself.
    ///
    /// # Errors
    /// As [`regex`](Self::regex).
    ///
    /// ```
    /// use turnwise_chat::{Grammar, train_tokenizer};
    ///
    /// let tokenizer = train_tokenizer(["add 1 and 2".to_owned()], 300)?;
    /// let stop = tokenizer.token_id("<|im_end|>").expect("a trained tokenizer has it");
    /// let call = r#"
    ///     start: <tool_call> "\n" call "\n" </tool_call>
    ///     call: %json {
    ///         "type": "object",
    ///         "properties": {"name": {"const": "add"}, "arguments": {"type": "object"}},
    ///         "required": ["name", "arguments"], "additionalProperties": false
    ///     }
    /// "#;
    /// assert!(Grammar::lark(&tokenizer, call, &[stop]).is_ok());
    /// assert!(Grammar::lark(&tokenizer, "start: <no_such_token>", &[stop]).is_err());
    /// # Ok::<(), turnwise_chat::ChatError>(())
    /// ```
    pub fn lark(tokenizer: &Tokenizer, lark: &str, stop: &[TokenId]) -> Result<Self, ChatError> {
        let grammar = || TopLevelGrammar::from_lark(lark.to_owned());
        Self::new(tokenizer, lark.to_owned(), grammar, stop)
    }

    /// Compiles a JSON schema: the turn is a value that the schema accepts, and nothing else.
    ///
    /// Between two parts of the value there may be a blank, or a line break with up to 40 blanks after it. The schema's
    /// own key [`x-guidance`](https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md) changes that. A
    /// range with 0 in it allows `-0`, which is an integer in JSON.
    ///
    /// # Errors
    /// As [`regex`](Self::regex), and for a schema that accepts nothing or has unknown keywords.
    ///
    /// ```
    /// use serde_json::json;
    /// use turnwise_chat::{Grammar, train_tokenizer};
    ///
    /// let tokenizer = train_tokenizer(["{\"guess\": 7}".to_owned()], 300)?;
    /// let stop = tokenizer.token_id("<|im_end|>").expect("a trained tokenizer has it");
    /// let schema = json!({
    ///     "type": "object",
    ///     "properties": {"guess": {"type": "integer", "minimum": 1, "maximum": 10}},
    ///     "required": ["guess"], "additionalProperties": false
    /// });
    /// assert!(Grammar::json_schema(&tokenizer, &schema, &[stop]).is_ok());
    ///
    /// let error = Grammar::json_schema(&tokenizer, &json!({"type": "list"}), &[stop]).unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read the grammar: "), "{error}");
    /// # Ok::<(), turnwise_chat::ChatError>(())
    /// ```
    pub fn json_schema(
        tokenizer: &Tokenizer,
        schema: &Value,
        stop: &[TokenId],
    ) -> Result<Self, ChatError> {
        let mut bounded = schema.clone();
        if let Some(table) = bounded.as_object_mut() {
            // By default, a value may contain any number of blanks, and a turn of blanks need not end.
            table.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": BLANKS }));
        }
        let grammar = || TopLevelGrammar::from_json_schema(bounded);
        Self::new(tokenizer, schema.to_string(), grammar, stop)
    }

    fn new(
        tokenizer: &Tokenizer,
        source: String,
        grammar: impl FnOnce() -> TopLevelGrammar,
        stop: &[TokenId],
    ) -> Result<Self, ChatError> {
        let mut stop = stop.to_vec();
        stop.sort_unstable();
        stop.dedup();
        let Some(last) = stop.last() else {
            return Err(ChatError::Grammar("no token ends the turn".to_owned()));
        };
        let mut spellings = spellings(tokenizer)?;
        spellings.resize(spellings.len().max(*last as usize + 1), Vec::new());
        for (id, bytes) in spellings.iter_mut().enumerate() {
            let id = id as TokenId;
            if stop.contains(&id) || bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
                bytes.clear();
            } else if tokenizer.is_control(id) {
                // Only a grammar that names the token matches the marker, which is never part of UTF-8.
                let name = tokenizer.token_name(id).unwrap_or_default();
                *bytes = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
            }
        }
        let compiled = quietly(|| compile(&spellings, stop[0], grammar()));
        let compiled = compiled.unwrap_or_else(Err).map_err(ChatError::Grammar)?;
        let has_bytes: Vec<bool> = spellings.iter().map(|bytes| !bytes.is_empty()).collect();
        let states = Mutex::new(States::new(compiled));
        Ok(Self { source, spelt: SimpleVob::from_slice(&has_bytes), stop, states })
    }

    fn is_spelt(&self, id: TokenId) -> bool {
        (id as usize) < self.spelt.len() && self.spelt.is_allowed(id)
    }

    /// Returns the allowed tokens after a complete or incomplete text.
    fn next(&self, matcher: &mut Matcher) -> Result<Vec<TokenId>, Exhausted> {
        if matcher.is_stopped() {
            return Ok(self.stop.clone());
        }
        let mask = matcher.compute_mask().map_err(|_| Exhausted)?;
        let words = mask.as_slice().iter().zip(self.spelt.as_slice());
        let mut allowed = ids_of(words.map(|(mask, spelt)| mask & spelt));
        if matcher.is_accepting().map_err(|_| Exhausted)? {
            allowed.extend(&self.stop);
            allowed.sort_unstable();
        }
        Ok(allowed)
    }

    fn try_allowed(
        &self,
        states: &mut States,
        sampled: &[TokenId],
    ) -> Result<Vec<TokenId>, Exhausted> {
        let (mut matcher, n) = states.take(sampled);
        let rest = &sampled[n..];
        if matcher.try_consume_tokens(rest).map_err(|_| Exhausted)? < rest.len() {
            return Ok(Vec::new());
        }
        let allowed = self.next(&mut matcher)?;
        states.keep(sampled, matcher);
        Ok(allowed)
    }
}

impl TokenConstraint for Grammar {
    fn allowed(&self, sampled: &[TokenId]) -> Option<Vec<TokenId>> {
        if !sampled.iter().all(|id| self.is_spelt(*id)) {
            return Some(Vec::new());
        }
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.try_allowed(&mut states, sampled);
        let allowed = first.or_else(|Exhausted| {
            // Earlier turns may have used up the parser's memory. Whether this one fits must not depend on them.
            states.clear();
            self.try_allowed(&mut states, sampled)
        });
        Some(allowed.unwrap_or_default())
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Grammar")
            .field("source", &self.source)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

/// The blanks between two parts of a JSON value.
const BLANKS: &str = r"\x20|\x0A\x20{0,40}";

/// Returns the ids of the bits that are set, in ascending order.
fn ids_of(words: impl Iterator<Item = u32> + Clone) -> Vec<TokenId> {
    let n: u32 = words.clone().map(u32::count_ones).sum();
    let mut ids = Vec::with_capacity(n as usize);
    for (first, mut word) in (0..).step_by(32).zip(words) {
        while word != 0 {
            ids.push(first + word.trailing_zeros());
            word &= word - 1;
        }
    }
    ids
}

/// A limit of the parser was reached, or no token is possible.
struct Exhausted;

/// Compiles the grammar, or returns why it cannot be read.
fn compile(
    spellings: &[Vec<u8>],
    stop: TokenId,
    grammar: TopLevelGrammar,
) -> Result<Matcher, String> {
    let vocabulary = TokTrie::from(&TokRxInfo::new(spellings.len() as u32, stop), spellings);
    // This environment is not canonical, so that the parser never demands one tokenization of a text.
    let environment: Arc<_> = Arc::new(ApproximateTokEnv::new(vocabulary));
    let make = || {
        let environment = environment.clone() as Arc<_>;
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.verbose_errors = false;
        // The work of one step depends on what earlier turns have computed, so a bound would make the result depend on
        // them too.
        limits.step_lexer_fuel = u64::MAX / 4;
        limits.step_max_items = usize::MAX / 4;
        factory.create_parser(grammar)
    };
    let matcher = Matcher::new(make());
    match matcher.get_error() {
        Some(error) => Err(brief(error.trim_end_matches("<non-verbose/>"))),
        None => Ok(matcher),
    }
}

/// Parser states of recent turns, by their tokens.
struct States {
    /// The state before any token, with nothing computed.
    compiled: Matcher,
    /// The state before any token. All states share what it has computed.
    start: Matcher,
    recent: HashMap<Vec<TokenId>, Matcher>,
    /// The states that were recent before. A state that nobody asks for is dropped with them.
    older: HashMap<Vec<TokenId>, Matcher>,
    /// The memory of the recent states, in tokens.
    weight: usize,
    max_weight: usize,
}

impl States {
    /// The largest memory of recent states, in tokens; measured, that is 65 MB. It has room for 256 turns of 4000 tokens.
    const MAX_WEIGHT: usize = 1 << 20;
    /// The memory of a state without tokens, in tokens.
    const BASE_WEIGHT: usize = 64;

    fn new(compiled: Matcher) -> Self {
        let start = compiled.deep_clone();
        let (recent, older) = (HashMap::new(), HashMap::new());
        Self { compiled, start, recent, older, weight: 0, max_weight: Self::MAX_WEIGHT }
    }

    fn clear(&mut self) {
        *self = Self::new(self.compiled.deep_clone());
    }

    /// Takes the state of the longest known beginning of a turn, and returns it with the number of its tokens.
    fn take(&mut self, sampled: &[TokenId]) -> (Matcher, usize) {
        for n in (1..=sampled.len()).rev() {
            let key = &sampled[..n];
            if let Some(matcher) = self.recent.remove(key) {
                self.weight -= n + Self::BASE_WEIGHT;
                return (matcher, n);
            }
            if let Some(matcher) = self.older.remove(key) {
                return (matcher, n);
            }
        }
        (self.start.clone(), 0)
    }

    fn keep(&mut self, sampled: &[TokenId], matcher: Matcher) {
        let weight = sampled.len() + Self::BASE_WEIGHT;
        if self.weight + weight > self.max_weight {
            self.older = std::mem::take(&mut self.recent);
            self.weight = 0;
        }
        self.weight += weight;
        self.recent.insert(sampled.to_vec(), matcher);
    }
}

#[cfg(test)]
mod tests {
    use turnwise_rollout::TokenConstraint;
    use turnwise_trajectory::TokenId;

    use super::Grammar;
    use crate::{MIN_IDS, train_tokenizer};

    fn n_states(grammar: &Grammar) -> usize {
        let states = grammar.states.lock().expect("nothing panics");
        states.recent.len() + states.older.len()
    }

    fn letters() -> (Grammar, [TokenId; 2]) {
        let tokenizer = train_tokenizer(Vec::new(), MIN_IDS).expect("bytes");
        let letters = ["a", "b"].map(|letter| tokenizer.encode_plain(letter)[0]);
        let stop = tokenizer.n_ids() as TokenId;
        (Grammar::regex(&tokenizer, "[ab]*", &[stop]).expect("a grammar"), letters)
    }

    #[test]
    fn a_turn_has_one_state_however_long_it_is() {
        let (grammar, letters) = letters();
        let turn: Vec<TokenId> = (0..300).map(|n| letters[n % 2]).collect();
        for n in 1..=turn.len() {
            assert_eq!(grammar.allowed(&turn[..n]).map(|allowed| allowed.len()), Some(3));
        }
        // The state without tokens is kept apart.
        assert_eq!(n_states(&grammar), 1);
    }

    /// Turns are asked for in an order in which each state is dropped before it is needed again.
    #[test]
    fn a_state_that_was_dropped_is_computed_again() {
        let (grammar, letters) = letters();
        grammar.states.lock().expect("nothing panics").max_weight = 800;
        let turns: Vec<Vec<TokenId>> = (0..64_usize)
            .map(|n| (0..6).map(|bit| letters[n >> bit & 1]).collect::<Vec<_>>().repeat(3))
            .collect();
        for n in [1, 9, 18, 2] {
            for turn in &turns {
                assert_eq!(grammar.allowed(&turn[..n]).map(|allowed| allowed.len()), Some(3));
                assert!(n_states(&grammar) <= 22, "{}", n_states(&grammar));
            }
        }
    }

    /// The parser's limits count what all turns have computed; a turn does not fail because of the turns before it.
    #[test]
    fn a_grammar_begins_again_when_its_states_are_used_up() {
        let (grammar, [a, b]) = letters();
        let before = grammar.allowed(&[a, b]);
        {
            let mut states = grammar.states.lock().expect("nothing panics");
            // An error of the parser stays in its state, as one of a limit does.
            assert!(states.start.test_trigger_lexer_error().is_err());
            states.recent.clear();
        }
        assert_eq!(grammar.allowed(&[a, b]), before);
        assert_eq!(grammar.allowed(&[a]), before);
    }
}
