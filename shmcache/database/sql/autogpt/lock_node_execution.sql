SELECT id FROM "AgentNodeExecution" WHERE id = %(id)s FOR NO KEY UPDATE
