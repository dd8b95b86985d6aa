-- What a lost host owns is looked through in parts, in this order. What another took from it was charged with the taking.
CREATE INDEX owners_by_arena ON owners (arena_id, graph_execution_id);
DROP INDEX owners_of_arena, owners_taken_from;
