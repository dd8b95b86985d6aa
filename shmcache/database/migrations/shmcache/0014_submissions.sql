-- Graph executions that were handed to a broker and have not ended: the broker's message may be lost, this row is not. It
-- names the queue, and when and how often a message was sent. No reference to the execution: it may be kept in partitions.
CREATE TABLE submissions (
    graph_execution_id uuid PRIMARY KEY,
    queue text NOT NULL,
    offered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    offers integer NOT NULL DEFAULT 1
);

-- Graph executions that somebody asked to end.
CREATE TABLE cancellations (
    graph_execution_id uuid PRIMARY KEY,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
