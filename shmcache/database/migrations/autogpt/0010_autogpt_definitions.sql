-- A graph of theirs is its identifier and a version of it; `graph_key` is what arenas have it under (the same reckoning as
-- `identifiers.graph_key`), `graph_digest` another one after each change of what is kept there.
CREATE FUNCTION graph_key(id text, version integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN version = 1 THEN id ELSE row_id('graph', id, version::text) END;

CREATE FUNCTION graph_digest(graph_id text, graph_version integer) RETURNS uuid LANGUAGE sql STABLE
RETURN row_id('digest', (
    SELECT coalesce(g.name, '') FROM "AgentGraph" g WHERE g.id = graph_id AND g.version = graph_version
), (
    SELECT coalesce(string_agg(jsonb_build_array(
        n.id, n."agentBlockId", n."constantInput", n.metadata, n."webhookId",
        (SELECT jsonb_agg(jsonb_build_array(l.id, l."sourceName", l."agentNodeSinkId", l."sinkName", l."isStatic")
            ORDER BY l.id) FROM "AgentNodeLink" l WHERE l."agentNodeSourceId" = n.id)
    )::text, ' ' ORDER BY n.id), '')
    FROM "AgentNode" n WHERE n."agentGraphId" = graph_id AND n."agentGraphVersion" = graph_version
))::uuid;

-- 100 graphs a message (a payload has 8000 bytes). What is new nobody has read yet.
CREATE FUNCTION tell_of_graphs(changed text[]) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('shmcache_definitions', string_agg(id, ','))
    FROM unnest(changed) WITH ORDINALITY AS given (id, place)
    GROUP BY (place - 1) / 100
$$;

CREATE FUNCTION graphs_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM tell_of_graphs(array(SELECT graph_key(id, version) FROM concerned));
    RETURN NULL;
END
$$;
CREATE TRIGGER shmcache_graphs_changed AFTER UPDATE ON "AgentGraph"
    REFERENCING OLD TABLE AS concerned FOR EACH STATEMENT EXECUTE FUNCTION graphs_changed();
CREATE TRIGGER shmcache_graphs_deleted AFTER DELETE ON "AgentGraph"
    REFERENCING OLD TABLE AS concerned FOR EACH STATEMENT EXECUTE FUNCTION graphs_changed();

CREATE FUNCTION nodes_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM tell_of_graphs(array(
        SELECT DISTINCT graph_key("agentGraphId", "agentGraphVersion") FROM concerned
    ));
    RETURN NULL;
END
$$;
CREATE TRIGGER shmcache_nodes_changed AFTER UPDATE ON "AgentNode"
    REFERENCING OLD TABLE AS concerned FOR EACH STATEMENT EXECUTE FUNCTION nodes_changed();
CREATE TRIGGER shmcache_nodes_deleted AFTER DELETE ON "AgentNode"
    REFERENCING OLD TABLE AS concerned FOR EACH STATEMENT EXECUTE FUNCTION nodes_changed();

CREATE FUNCTION links_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM tell_of_graphs(array(
        SELECT DISTINCT graph_key(n."agentGraphId", n."agentGraphVersion")
        FROM concerned c JOIN "AgentNode" n ON n.id IN (c."agentNodeSourceId", c."agentNodeSinkId")
    ));
    RETURN NULL;
END
$$;
CREATE TRIGGER shmcache_links_changed AFTER UPDATE ON "AgentNodeLink"
    REFERENCING OLD TABLE AS concerned FOR EACH STATEMENT EXECUTE FUNCTION links_changed();
CREATE TRIGGER shmcache_links_deleted AFTER DELETE ON "AgentNodeLink"
    REFERENCING OLD TABLE AS concerned FOR EACH STATEMENT EXECUTE FUNCTION links_changed();

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tell_of_graphs(text[])', 'graphs_changed()', 'nodes_changed()', 'links_changed()']
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = shmcache, %I, pg_temp',
            name, current_setting('shmcache.platform_schema'));
    END LOOP;
END
$$;
