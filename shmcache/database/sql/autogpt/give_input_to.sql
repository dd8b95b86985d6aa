WITH given AS (
    INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedByInputExecId")
    SELECT row_id('input', e.id, %(name)s), %(name)s, %(value)s::jsonb, to_timestamp(%(time)s), e.id
    FROM "AgentNodeExecution" e
    WHERE e.id = %(id)s AND %(name)s::text IS NOT NULL AND NOT EXISTS (
        SELECT FROM "AgentNodeExecutionInputOutput" i WHERE i."referencedByInputExecId" = e.id AND i.name = %(name)s
    )
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)
INSERT INTO input_sources (input_id, source_execution_id, source_ordinal)
SELECT given.id, %(source_id)s, %(source_ordinal)s FROM given WHERE %(source_id)s::text IS NOT NULL
