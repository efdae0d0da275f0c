//! Take an order with two tools: one that adds to it, and one that hands it in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use turnwise::environment::{
    Action, Environment, EnvironmentError, Observation, Reply, Step, Suite, Tasks, ToolSpec, Tools,
    async_trait,
};

/// What is on the menu.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
enum Item {
    Tea,
    Coffee,
    Cake,
    Soup,
}

const MENU: [Item; 4] = [Item::Tea, Item::Coffee, Item::Cake, Item::Soup];

/// How many of each item.
type Items = BTreeMap<Item, u32>;

/// The order as it stands: the state that both tools share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Order {
    wanted: Items,
    taken: Items,
    is_handed_in: bool,
}

impl Order {
    /// Adds to the order, and returns what that earns: the first right call for an item, its share of a half.
    fn add(&mut self, item: Item, count: u32) -> f64 {
        let is_right = self.wanted.get(&item) == Some(&count) && !self.taken.contains_key(&item);
        *self.taken.entry(item).or_default() += count;
        if is_right { 0.5 / self.wanted.len() as f64 } else { 0.0 }
    }
}

/// Adds an item of the menu to the order.
#[derive(Debug, Deserialize, JsonSchema)]
struct AddItem {
    item: Item,
    count: u32,
}
async fn add_item(order: &mut Order, call: AddItem) -> Reply {
    let earned = order.add(call.item, call.count);
    Reply::text(json!(order.taken).to_string()).reward(earned)
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
            counts.map(move |(n, m)| Items::from([(a, n), (b, m)]))
        });
        Suite::divided("order-desk", Tasks::new(orders, Self::new), 0.2)
            .description("take an order with two tools")
            .max_turns(TURNS)
    }
}

#[async_trait]
impl Environment for OrderDesk {
    async fn reset(&mut self, _seed: u64) -> Result<Observation, EnvironmentError> {
        let wanted: Vec<String> = self
            .order
            .wanted
            .iter()
            .map(|(item, count)| format!("{count} {item:?}").to_lowercase())
            .collect();
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
