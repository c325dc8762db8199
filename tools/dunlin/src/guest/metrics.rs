//! What a guest's process tells Prometheus: the board, as it is.

use super::board::Board;
use crate::metrics::Source;
use crate::metrics::exposition::Exposition;

impl Source for Board {
    fn text(&self) -> String {
        let mut exposition = Exposition::new();
        let guest = self.status();
        exposition.guest(&guest);
        let (outcomes, last) = self.over();
        exposition.moves(&guest.name, &outcomes);
        if let Some(report) = last {
            exposition.last_move(&report);
        }
        exposition.text()
    }
}
