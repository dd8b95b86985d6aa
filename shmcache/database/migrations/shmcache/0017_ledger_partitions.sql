-- The ledger by the time in its keys. A charge's key begins with its node execution's identifier (UUID version 7), so in
-- the order of its bytes it stands in a month, and is unique in all of the ledger. What is there already becomes the first
-- partition as it is: it is read once, and its keys' index made anew, while nobody else reads or writes it.
--     ledger_below, ledger_above    keys below and above all that begin with a time from 2004 to 2527; never dropped
--     ledger_before, ledger_YYYY_MM by the time; a key that carries none, and stands among them, outlives its month
--     ledger_rest                   what no month takes
LOCK TABLE accounts, ledger IN ACCESS EXCLUSIVE MODE;

-- What others have hung on it would stay with the old rows.
DO $$
DECLARE
    hung text;
BEGIN
    SELECT string_agg(DISTINCT what, ', ') INTO hung FROM (
        SELECT 'the foreign key ' || conname || ' of ' || conrelid::regclass AS what FROM pg_constraint
        WHERE contype = 'f' AND confrelid = 'ledger'::regclass
        UNION ALL
        SELECT 'the view ' || r.ev_class::regclass FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
            AND d.refobjid = 'ledger'::regclass AND r.ev_class <> 'ledger'::regclass
        UNION ALL
        SELECT 'the trigger ' || tgname FROM pg_trigger WHERE tgrelid = 'ledger'::regclass AND NOT tgisinternal
        UNION ALL
        SELECT 'the table from the publication ' || p.pubname FROM pg_publication_rel r
        JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = 'ledger'::regclass
    ) AS found;
    IF hung IS NOT NULL THEN
        RAISE EXCEPTION 'the ledger''s table is made anew: drop %, and make it again afterwards', hung
            USING ERRCODE = 'dependent_objects_still_exist';
    END IF;
END
$$;

-- Whether a key begins with an identifier that has a time.
CREATE FUNCTION carries_time(key text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN key ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}';

-- Looked up for each row, that took half of the time of writing it; and to make a month ahead would lock all accounts.
-- Who writes a row has the account's row locked, so it is there.
ALTER TABLE ledger DROP CONSTRAINT ledger_user_id_fkey;
CREATE FUNCTION accounts_deleted() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$
BEGIN
    IF EXISTS (SELECT FROM removed WHERE EXISTS (SELECT FROM ledger l WHERE l.user_id = removed.user_id)) THEN
        RAISE EXCEPTION 'an account still has rows in the ledger' USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER accounts_deleted AFTER DELETE ON accounts
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION accounts_deleted();

ALTER TABLE ledger RENAME TO ledger_before;
ALTER TABLE ledger_before ALTER COLUMN transaction_key TYPE text COLLATE "C";
DO $$
DECLARE
    boundary text := id_at(first_of_month(now() + interval '1 day' + interval '1 month'))::text;
    given record;
BEGIN
    FOR given IN SELECT indexrelid::regclass::text AS old FROM pg_index WHERE indrelid = 'ledger_before'::regclass LOOP
        EXECUTE format('ALTER INDEX %s RENAME TO %I', given.old, 'before_' || given.old);
    END LOOP;
    CREATE TABLE ledger (LIKE ledger_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)
        PARTITION BY RANGE (transaction_key);
    ALTER TABLE ledger ADD PRIMARY KEY (transaction_key);
    FOR given IN
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.place) AS columns
        FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = 'ledger_before'::regclass AND NOT i.indisunique GROUP BY i.indexrelid
    LOOP
        EXECUTE format('CREATE INDEX ON ledger (%s)', given.columns);
    END LOOP;
    FOR given IN
        SELECT acl.privilege_type, CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
            AS grantee
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
        WHERE c.oid = 'ledger_before'::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON ledger TO %s', given.privilege_type, given.grantee);
    END LOOP;
    CREATE TABLE ledger_below PARTITION OF ledger FOR VALUES FROM (MINVALUE) TO ('01');
    CREATE TABLE ledger_above PARTITION OF ledger FOR VALUES FROM ('1') TO (MAXVALUE);
    CREATE TABLE ledger_rest PARTITION OF ledger DEFAULT;
    WITH moved AS (
        DELETE FROM ledger_before WHERE transaction_key < '01' OR transaction_key >= boundary RETURNING *
    )
    INSERT INTO ledger SELECT * FROM moved;
    EXECUTE format('ALTER TABLE ledger ATTACH PARTITION ledger_before FOR VALUES FROM (''01'') TO (%L)', boundary);
END
$$;

-- Whether something was charged is not known of a time whose ledger is dropped: then it is not charged.
CREATE TABLE ledger_dropped (until text COLLATE "C" NOT NULL);
CREATE UNIQUE INDEX ledger_dropped_once ON ledger_dropped ((true));
CREATE FUNCTION refuse_what_is_dropped() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = shmcache, pg_temp AS $$
BEGIN
    IF carries_time(NEW.transaction_key) AND EXISTS (SELECT FROM ledger_dropped WHERE until > NEW.transaction_key) THEN
        RAISE EXCEPTION 'the ledger of the time of % is dropped: nobody knows whether that was charged', NEW.transaction_key
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_dropped', TABLE = 'ledger', SCHEMA = 'shmcache';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER refuse_what_is_dropped BEFORE INSERT ON ledger_rest
    FOR EACH ROW EXECUTE FUNCTION refuse_what_is_dropped();

-- As before, and the ledger's months too.
CREATE OR REPLACE FUNCTION make_partitions(months integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    name text;
    month timestamptz;
    part text;
    rest text;
    key text;
    found boolean;
    made integer := 0;
BEGIN
    FOREACH name IN ARRAY
        ARRAY['graph_executions', 'node_executions', 'node_execution_inputs', 'node_execution_outputs', 'ledger']
    LOOP
        FOR month IN
            SELECT first_of_month(at) FROM generate_series(
                first_of_month(now()), first_of_month(now()) + months * interval '1 month', interval '1 month'
            ) AS at
        LOOP
            part := name || to_char(month AT TIME ZONE 'UTC', '"_"YYYY"_"MM');
            CONTINUE WHEN EXISTS (
                SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = name::regclass AND (c.relname = part OR c.relname = name || '_before'
                    AND id_at(month) < substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''(.*)''\)')::uuid)
            );
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, name);
            rest := name || '_rest';
            key := CASE
                WHEN name = 'ledger' THEN 'transaction_key'
                WHEN name IN ('graph_executions', 'node_executions') THEN 'id'
                ELSE 'node_execution_id'
            END;
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

-- Its keys have lost their statistics. An empty table that is analyzed counts as one that stays so.
DO $$
BEGIN
    IF EXISTS (SELECT FROM ledger_before) THEN
        ANALYZE ledger_before;
    END IF;
END
$$;
