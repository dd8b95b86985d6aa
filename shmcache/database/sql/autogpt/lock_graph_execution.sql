SELECT FROM "AgentGraphExecution" WHERE id = %(id)s FOR NO KEY UPDATE
