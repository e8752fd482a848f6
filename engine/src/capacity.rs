//! Who gets a place in a service that is full, and how many places there are. Knows nothing of
//! connections or tasks: the proxy holds the places, and asks here when they do not suffice.

mod adaptive;
mod chain;
mod fair_queue;
mod flow;
mod priority;
mod share;

pub use self::adaptive::{AdaptiveLimit, WindowSample};
pub use self::fair_queue::{FLOWS_MAX_DEFAULT, FairQueue, Key, QueueBounds};
pub use self::flow::Flows;
pub use self::priority::PriorityPlaces;
pub use self::share::Share;
