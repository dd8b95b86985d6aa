-- What of a graph, its nodes and its links may be kept elsewhere, by a version that is another one after each change,
-- whoever makes it; and every host is told of the change when it is committed.
ALTER TABLE graphs ADD COLUMN version uuid NOT NULL DEFAULT gen_random_uuid();

-- Several statements of one transaction change a graph's version once: those whose graphs were the last ones named do
-- nothing more. What is named is forgotten with the transaction, or the savepoint, that named it.
CREATE FUNCTION change_graphs(changed uuid[]) RETURNS void LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    IF cardinality(changed) > 0 AND current_setting('shmcache.changed_graphs', true) IS DISTINCT FROM changed::text THEN
        UPDATE graphs SET version = gen_random_uuid() WHERE id = ANY (changed);
        PERFORM set_config('shmcache.changed_graphs', changed::text, true);
    END IF;
END
$$;

-- 200 graphs a message (a payload has 8000 bytes).
CREATE FUNCTION tell_of_graphs(changed uuid[]) RETURNS void LANGUAGE sql SET search_path = shmcache AS $$
    SELECT pg_notify('shmcache_definitions', string_agg(id::text, ','))
    FROM unnest(changed) WITH ORDINALITY AS given (id, place)
    GROUP BY (place - 1) / 200
$$;

CREATE FUNCTION graph_inserted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    -- Nobody has read it yet, so nobody need be told of the nodes and links that come with it.
    PERFORM set_config('shmcache.changed_graphs', coalesce((SELECT array_agg(id)::text FROM added), ''), true);
    RETURN NULL;
END
$$;
CREATE TRIGGER graphs_inserted AFTER INSERT ON graphs
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION graph_inserted();

CREATE FUNCTION graph_changes() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    NEW.version := gen_random_uuid();
    RETURN NEW;
END
$$;
CREATE TRIGGER graphs_change BEFORE UPDATE ON graphs
    FOR EACH ROW WHEN (NEW IS DISTINCT FROM OLD) EXECUTE FUNCTION graph_changes();

CREATE FUNCTION graphs_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM tell_of_graphs(array(
        SELECT before.id FROM changed_before before LEFT JOIN changed_after after USING (id)
        WHERE after.version IS DISTINCT FROM before.version
    ));
    RETURN NULL;
END
$$;
CREATE TRIGGER graphs_changed AFTER UPDATE ON graphs
    REFERENCING OLD TABLE AS changed_before NEW TABLE AS changed_after
    FOR EACH STATEMENT EXECUTE FUNCTION graphs_changed();

CREATE FUNCTION graphs_deleted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM tell_of_graphs(array(SELECT id FROM removed));
    RETURN NULL;
END
$$;
CREATE TRIGGER graphs_deleted AFTER DELETE ON graphs
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION graphs_deleted();

-- Nodes and links alike: each has the graph that it is part of.
CREATE FUNCTION graph_parts_inserted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM change_graphs(array(SELECT DISTINCT graph_id FROM added ORDER BY graph_id));
    RETURN NULL;
END
$$;
CREATE FUNCTION graph_parts_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM change_graphs(array(
        SELECT graph_id FROM (TABLE changed_before EXCEPT TABLE changed_after) AS gone
        UNION SELECT graph_id FROM (TABLE changed_after EXCEPT TABLE changed_before) AS come
        ORDER BY graph_id
    ));
    RETURN NULL;
END
$$;
CREATE FUNCTION graph_parts_deleted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM change_graphs(array(SELECT DISTINCT graph_id FROM removed ORDER BY graph_id));
    RETURN NULL;
END
$$;
CREATE TRIGGER nodes_inserted AFTER INSERT ON nodes
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_inserted();
CREATE TRIGGER nodes_changed AFTER UPDATE ON nodes
    REFERENCING OLD TABLE AS changed_before NEW TABLE AS changed_after
    FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_changed();
CREATE TRIGGER nodes_deleted AFTER DELETE ON nodes
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_deleted();
CREATE TRIGGER links_inserted AFTER INSERT ON links
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_inserted();
CREATE TRIGGER links_changed AFTER UPDATE ON links
    REFERENCING OLD TABLE AS changed_before NEW TABLE AS changed_after
    FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_changed();
CREATE TRIGGER links_deleted AFTER DELETE ON links
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_deleted();

CREATE FUNCTION graph_parts_truncated() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    PERFORM change_graphs(array(SELECT id FROM graphs ORDER BY id));
    RETURN NULL;
END
$$;
CREATE TRIGGER nodes_truncated AFTER TRUNCATE ON nodes FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_truncated();
CREATE TRIGGER links_truncated AFTER TRUNCATE ON links FOR EACH STATEMENT EXECUTE FUNCTION graph_parts_truncated();
