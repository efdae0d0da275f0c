//! Take an order with two tools: one that adds to it, and one that hands it in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turnwise::environment::{
    Action, Environment, EnvironmentError, Observation, Reply, Step, Suite, Tasks, ToolSpec, Tools,
    async_trait,
};

/// How many of each item, by its name on the menu.
type Items = BTreeMap<String, u32>;

const MENU: [&str; 4] = ["tea", "coffee", "cake", "soup"];

/// The order as it stands: the state that both tools share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Order {
    wanted: Items,
    taken: Items,
    is_handed_in: bool,
}

/// Adds an item of the menu to the order.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddItem {
    /// Its name on the menu.
    item: String,
    /// How many of it.
    count: u32,
}

async fn add_item(order: &mut Order, call: AddItem) -> Result<Reply, String> {
    let AddItem { item, count } = call;
    if !MENU.contains(&item.as_str()) {
        return Err(format!("the menu has {}", MENU.join(", ")));
    }
    let is_right = order.wanted.get(&item) == Some(&count) && !order.taken.contains_key(&item);
    *order.taken.entry(item).or_default() += count;
    let taken = serde_json::to_string(&order.taken).map_err(|error| error.to_string())?;
    // The first right call for an item earns its share of a half.
    let share = 0.5 / order.wanted.len() as f64;
    Ok(if is_right { Reply::text(taken).reward(share) } else { Reply::text(taken) })
}

/// Hands the order in, which ends the conversation.
#[derive(Debug, Deserialize, JsonSchema)]
struct HandIn {}

/// One conversation with a guest.
#[derive(Clone, Debug)]
pub struct OrderDesk {
    order: Order,
    turns_left: usize,
    tools: Tools<Order>,
}

const TURNS: usize = 6;

impl OrderDesk {
    fn new(wanted: &Items) -> Self {
        let tools = Tools::new().async_tool(add_item).tool(|order: &mut Order, _: HandIn| {
            order.is_handed_in = true;
            "thank you"
        });
        let order = Order { wanted: wanted.clone(), ..Order::default() };
        Self { order, turns_left: TURNS, tools }
    }

    /// The order desk under its name, with a fifth of all orders held out.
    #[must_use]
    pub fn suite() -> Suite {
        let pairs = (0..MENU.len()).flat_map(|a| (0..a).map(move |b| (MENU[a], MENU[b])));
        let orders = pairs.flat_map(|(a, b)| {
            let counts = (1..=5).flat_map(|n| (1..=5).map(move |m| (n, m)));
            counts.map(move |(n, m)| Items::from([(a.to_owned(), n), (b.to_owned(), m)]))
        });
        Suite::divided("order-desk", Tasks::new(orders, Self::new), 0.2)
            .description("take an order with two tools")
            .max_turns(TURNS)
    }
}

#[async_trait]
impl Environment for OrderDesk {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        let wanted: Vec<String> =
            self.order.wanted.iter().map(|(item, count)| format!("{count} {item}")).collect();
        Ok(format!("I would like {}, please.", wanted.join(" and ")).into())
    }

    async fn step(&mut self, action: Action) -> Result<Step, EnvironmentError> {
        self.turns_left -= 1;
        let round = self.tools.answer(&mut self.order, &action).await?;
        if self.order.is_handed_in || self.turns_left == 0 {
            let is_right = self.order.is_handed_in && self.order.taken == self.order.wanted;
            let reward = round.reward.unwrap_or(0.0) + if is_right { 0.5 } else { 0.0 };
            return Ok(Step::terminated(reward).solved(is_right));
        }
        Ok(if action.calls.is_empty() { Step::next("Yes?").faults(1) } else { round.into() })
    }

    fn tools(&self) -> Vec<ToolSpec> {
        self.tools.specs()
    }
}
