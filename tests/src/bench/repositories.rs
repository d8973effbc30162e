//! Repositories of other tools: how long until the first query, what a page costs in each layout, how fast whole files are read, and
//! what memory lists and maps take.

pub(super) mod first_query;
pub(super) mod memory;
mod page;
pub(super) mod reads;
mod scan;
