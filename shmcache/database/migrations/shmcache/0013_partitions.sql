-- Executions by the time that is in their identifiers (UUID version 7): a partition a month, which goes as a whole. What
-- is there already becomes the first partition as it is: each table is read once, to see that it belongs there, while
-- nobody else reads or writes it. Identifiers that carry no time are in the partition `_rest`, and stay.
LOCK TABLE graph_executions, node_executions, node_execution_inputs, node_execution_outputs, owners
    IN ACCESS EXCLUSIVE MODE;

-- What others have hung on these tables would stay with the old rows.
DO $$
DECLARE
    hung text;
BEGIN
    SELECT string_agg(DISTINCT what, ', ') INTO hung FROM (
        SELECT 'the foreign key ' || conname || ' of ' || conrelid::regclass AS what FROM pg_constraint
        WHERE contype = 'f' AND confrelid IN ('graph_executions'::regclass, 'node_executions'::regclass,
                'node_execution_inputs'::regclass, 'node_execution_outputs'::regclass)
            AND connamespace IS DISTINCT FROM 'shmcache'::regnamespace
        UNION ALL
        SELECT 'the view ' || r.ev_class::regclass FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid IN ('graph_executions'::regclass, 'node_executions'::regclass,
                'node_execution_inputs'::regclass, 'node_execution_outputs'::regclass, 'node_execution_records'::regclass)
            AND r.ev_class NOT IN ('graph_executions'::regclass, 'node_executions'::regclass,
                'node_execution_inputs'::regclass, 'node_execution_outputs'::regclass, 'node_execution_records'::regclass)
    ) AS found;
    IF hung IS NOT NULL THEN
        RAISE EXCEPTION 'the tables of executions are made anew: drop %, and make it again afterwards', hung
            USING ERRCODE = 'dependent_objects_still_exist';
    END IF;
END
$$;

-- The first identifier of a time.
CREATE FUNCTION id_at(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (lpad(to_hex((extract(epoch FROM moment) * 1000)::int8), 12, '0') || repeat('0', 20))::uuid;

CREATE FUNCTION first_of_month(moment timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN date_trunc('month', moment AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';

DROP VIEW node_execution_records;

-- A foreign key to a partitioned table is looked up for each row, three times as slowly as the rows are written. Whether
-- parents are there is asked once a batch instead.
ALTER TABLE owners DROP CONSTRAINT owners_graph_execution_id_fkey;
ALTER TABLE node_executions DROP CONSTRAINT node_executions_graph_execution_id_fkey;
ALTER TABLE node_execution_inputs DROP CONSTRAINT node_execution_inputs_node_execution_id_fkey;
ALTER TABLE node_execution_outputs DROP CONSTRAINT node_execution_outputs_node_execution_id_fkey;

CREATE FUNCTION refuse_orphans(graph_execs uuid[], node_execs uuid[]) RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
    missing uuid;
BEGIN
    SELECT id INTO missing FROM unnest(graph_execs) AS given (id)
    WHERE NOT EXISTS (SELECT FROM graph_executions g WHERE g.id = given.id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no graph execution %', missing USING ERRCODE = 'foreign_key_violation',
            DETAIL = format('Key (graph_execution_id)=(%s) is not present in table "graph_executions".', missing);
    END IF;
    SELECT id INTO missing FROM unnest(node_execs) AS given (id)
    WHERE NOT EXISTS (SELECT FROM node_executions n WHERE n.id = given.id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no node execution %', missing USING ERRCODE = 'foreign_key_violation',
            DETAIL = format('Key (node_execution_id)=(%s) is not present in table "node_executions".', missing);
    END IF;
END
$$;

-- From the first month that begins more than a day from now; what comes until then, and came before, is in one partition.
CREATE FUNCTION make_partitioned(name text, key text, boundary timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    before text := name || '_before';
    old text;
    given record;
BEGIN
    EXECUTE format('ALTER TABLE %I RENAME TO %I', name, before);
    FOR old IN SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = before::regclass LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', old, 'before_' || old);
    END LOOP;
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)'
        ' PARTITION BY RANGE (%I)', name, before, key);
    FOR given IN
        SELECT pg_get_constraintdef(oid) AS definition FROM pg_constraint
        WHERE conrelid = before::regclass AND contype IN ('p', 'f') ORDER BY contype DESC
    LOOP
        EXECUTE format('ALTER TABLE %I ADD %s', name, given.definition);
    END LOOP;
    FOR given IN
        SELECT i.indkey, string_agg(quote_ident(a.attname), ', ' ORDER BY k.place) AS columns
        FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = before::regclass AND NOT i.indisunique GROUP BY i.indexrelid, i.indkey
    LOOP
        EXECUTE format('CREATE INDEX ON %I (%s)', name, given.columns);
    END LOOP;
    FOR given IN
        SELECT acl.privilege_type, CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
            AS grantee
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = before::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %I TO %s', given.privilege_type, name, given.grantee);
    END LOOP;
    EXECUTE format('CREATE TABLE %I PARTITION OF %I DEFAULT', name || '_rest', name);
    EXECUTE format('WITH moved AS (DELETE FROM %I WHERE %I >= %L RETURNING *) INSERT INTO %I SELECT * FROM moved',
        before, key, id_at(boundary), name || '_rest');
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%L)', name, before, id_at(boundary));
END
$$;

DO $$
DECLARE
    boundary timestamptz := first_of_month(now() + interval '1 day' + interval '1 month');
BEGIN
    PERFORM make_partitioned('graph_executions', 'id', boundary);
    PERFORM make_partitioned('node_executions', 'id', boundary);
    PERFORM make_partitioned('node_execution_inputs', 'node_execution_id', boundary);
    PERFORM make_partitioned('node_execution_outputs', 'node_execution_id', boundary);
END
$$;
DROP FUNCTION make_partitioned(text, text, timestamptz);

CREATE VIEW node_execution_records AS
SELECT
    e.id, e.graph_execution_id, e.node_id, n.block_id, g.user_id, e.status,
    (SELECT coalesce(jsonb_object_agg(i.name, i.value), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id) AS inputs,
    (SELECT coalesce(jsonb_object_agg(i.name, jsonb_build_array(i.source_execution_id, i.source_ordinal)), '{}')
        FROM node_execution_inputs i WHERE i.node_execution_id = e.id AND i.source_execution_id IS NOT NULL) AS sources,
    (SELECT coalesce(jsonb_agg(jsonb_build_array(o.name, o.value) ORDER BY o.ordinal), '[]')
        FROM node_execution_outputs o WHERE o.node_execution_id = e.id) AS outputs,
    extract(epoch FROM e.created_at) AS created_at, extract(epoch FROM e.queued_at) AS queued_at,
    extract(epoch FROM e.started_at) AS started_at, extract(epoch FROM e.ended_at) AS ended_at, e.stats, e.moves
FROM node_executions e
JOIN nodes n ON n.id = e.node_id
JOIN graph_executions g ON g.id = e.graph_execution_id;

-- As the foreign keys did: an owner goes with its graph execution; what has rows below it is not deleted.
CREATE FUNCTION graph_executions_deleted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    IF EXISTS (SELECT FROM node_executions n JOIN removed ON removed.id = n.graph_execution_id) THEN
        RAISE EXCEPTION 'a graph execution still has node executions' USING ERRCODE = 'foreign_key_violation';
    END IF;
    DELETE FROM owners USING removed WHERE owners.graph_execution_id = removed.id;
    RETURN NULL;
END
$$;
CREATE FUNCTION node_executions_deleted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    IF EXISTS (SELECT FROM node_execution_inputs i JOIN removed ON removed.id = i.node_execution_id)
        OR EXISTS (SELECT FROM node_execution_outputs o JOIN removed ON removed.id = o.node_execution_id)
    THEN
        RAISE EXCEPTION 'a node execution still has inputs or outputs' USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER node_executions_deleted AFTER DELETE ON node_executions
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION node_executions_deleted();
CREATE TRIGGER graph_executions_deleted AFTER DELETE ON graph_executions
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION graph_executions_deleted();

-- Make the months that are missing until so many from now; return how many tables were made. Each is made beside its
-- parent and attached, which keeps nobody from reading or writing but where rows of `_rest` are looked through. Rows of
-- a month that nobody had made in time are there, and move.
CREATE FUNCTION make_partitions(months integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    name text;
    month timestamptz;
    part text;
    rest text;
    key text;
    found boolean;
    made integer := 0;
BEGIN
    FOREACH name IN ARRAY ARRAY['graph_executions', 'node_executions', 'node_execution_inputs', 'node_execution_outputs']
    LOOP
        FOR month IN
            SELECT first_of_month(at) FROM generate_series(
                first_of_month(now()), first_of_month(now()) + months * interval '1 month', interval '1 month'
            ) AS at
        LOOP
            part := name || to_char(month AT TIME ZONE 'UTC', '"_"YYYY"_"MM');
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = name::regclass AND (c.relname = part OR id_at(month) < coalesce(
                    substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(MINVALUE\) TO \(''(.*)''\)')::uuid, id_at('epoch')
                ))
            );
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, name);
            rest := name || '_rest';
            key := CASE WHEN name IN ('graph_executions', 'node_executions') THEN 'id' ELSE 'node_execution_id' END;
            EXECUTE format('SELECT EXISTS (SELECT FROM %1$I WHERE %2$I >= %3$L AND %2$I < %4$L)', rest, key,
                id_at(month), id_at(first_of_month(month + interval '32 days'))) INTO found;
            IF found THEN
                EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', rest);
                EXECUTE format('WITH moved AS (DELETE FROM %1$I WHERE %2$I >= %3$L AND %2$I < %4$L RETURNING *)'
                    ' INSERT INTO %5$I SELECT * FROM moved', rest, key,
                    id_at(month), id_at(first_of_month(month + interval '32 days')), part);
            END IF;
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                name, part, id_at(month), id_at(first_of_month(month + interval '32 days')));
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END
$$;
SELECT make_partitions(3);

-- Programs that change several graphs at once do so in one order.
CREATE OR REPLACE FUNCTION change_graphs(changed uuid[]) RETURNS void LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    IF cardinality(changed) > 0 AND current_setting('shmcache.changed_graphs', true) IS DISTINCT FROM changed::text THEN
        PERFORM FROM graphs WHERE id = ANY (changed) ORDER BY id FOR NO KEY UPDATE;
        UPDATE graphs SET version = gen_random_uuid() WHERE id = ANY (changed);
        PERFORM set_config('shmcache.changed_graphs', changed::text, true);
    END IF;
END
$$;
