"""The recurrence in three passes: what does not depend on the state, a walk over states, and all tokens at once."""
