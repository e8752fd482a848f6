//! What a policy answers, claim by claim.

mod conditions;
mod order;
mod recompiling;
mod routes;
mod world;
