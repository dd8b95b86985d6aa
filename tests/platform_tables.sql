-- The tables of the AutoGPT Platform that its executors read and write, as far as shmcache has to do with them: named
-- as they are named there, written for these tests. Identifiers are text, times have milliseconds and no zone.
CREATE SCHEMA platform;

CREATE TYPE platform."AgentExecutionStatus" AS ENUM
    ('INCOMPLETE', 'QUEUED', 'RUNNING', 'COMPLETED', 'TERMINATED', 'FAILED', 'REVIEW');
CREATE TYPE platform."CreditTransactionType" AS ENUM ('USAGE', 'TOP_UP', 'GRANT', 'REFUND', 'CARD_CHECK');

CREATE TABLE platform."AgentGraph" (
    id text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    "createdAt" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    name text,
    description text,
    "isActive" boolean NOT NULL DEFAULT true,
    "userId" text NOT NULL,
    PRIMARY KEY (id, version)
);

CREATE TABLE platform."AgentNode" (
    id text PRIMARY KEY,
    "agentBlockId" text NOT NULL,
    "agentGraphId" text NOT NULL,
    "agentGraphVersion" integer NOT NULL DEFAULT 1,
    "constantInput" jsonb NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    "webhookId" text,
    FOREIGN KEY ("agentGraphId", "agentGraphVersion") REFERENCES platform."AgentGraph" (id, version) ON DELETE CASCADE
);
CREATE INDEX ON platform."AgentNode" ("agentGraphId", "agentGraphVersion");

CREATE TABLE platform."AgentNodeLink" (
    id text PRIMARY KEY,
    "agentNodeSourceId" text NOT NULL REFERENCES platform."AgentNode" ON DELETE CASCADE,
    "sourceName" text NOT NULL,
    "agentNodeSinkId" text NOT NULL REFERENCES platform."AgentNode" ON DELETE CASCADE,
    "sinkName" text NOT NULL,
    "isStatic" boolean NOT NULL DEFAULT false
);
CREATE INDEX ON platform."AgentNodeLink" ("agentNodeSourceId");
CREATE INDEX ON platform."AgentNodeLink" ("agentNodeSinkId");

CREATE TABLE platform."AgentGraphExecution" (
    id text PRIMARY KEY,
    "createdAt" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "startedAt" timestamp(3),
    "endedAt" timestamp(3),
    "executionStatus" platform."AgentExecutionStatus" NOT NULL DEFAULT 'COMPLETED',
    "agentGraphId" text NOT NULL,
    "agentGraphVersion" integer NOT NULL DEFAULT 1,
    "agentPresetId" text,
    "userId" text NOT NULL,
    stats jsonb,
    FOREIGN KEY ("agentGraphId", "agentGraphVersion") REFERENCES platform."AgentGraph" (id, version) ON DELETE CASCADE
);
CREATE INDEX ON platform."AgentGraphExecution" ("userId");

CREATE TABLE platform."AgentNodeExecution" (
    id text PRIMARY KEY,
    "agentGraphExecutionId" text NOT NULL REFERENCES platform."AgentGraphExecution" ON DELETE CASCADE,
    "agentNodeId" text NOT NULL REFERENCES platform."AgentNode" ON DELETE CASCADE,
    "executionStatus" platform."AgentExecutionStatus" NOT NULL DEFAULT 'COMPLETED',
    "executionData" jsonb,
    "addedTime" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "queuedTime" timestamp(3),
    "startedTime" timestamp(3),
    "endedTime" timestamp(3),
    stats jsonb
);
CREATE INDEX ON platform."AgentNodeExecution" ("agentGraphExecutionId", "agentNodeId", "executionStatus");
CREATE INDEX ON platform."AgentNodeExecution" ("agentNodeId", "executionStatus");

CREATE TABLE platform."AgentNodeExecutionInputOutput" (
    id text PRIMARY KEY,
    name text NOT NULL,
    data jsonb,
    time timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "referencedByInputExecId" text REFERENCES platform."AgentNodeExecution" ON DELETE CASCADE,
    "referencedByOutputExecId" text REFERENCES platform."AgentNodeExecution" ON DELETE CASCADE,
    -- One of its columns is always NULL: it never refuses anything.
    UNIQUE ("referencedByInputExecId", "referencedByOutputExecId", name)
);
CREATE INDEX ON platform."AgentNodeExecutionInputOutput" ("referencedByOutputExecId");

CREATE TABLE platform."CreditTransaction" (
    "transactionKey" text NOT NULL,
    "createdAt" timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "userId" text NOT NULL,
    amount integer NOT NULL,
    type platform."CreditTransactionType" NOT NULL,
    "runningBalance" integer,
    "isActive" boolean NOT NULL DEFAULT true,
    metadata jsonb,
    PRIMARY KEY ("transactionKey", "userId")
);
CREATE INDEX ON platform."CreditTransaction" ("userId", "createdAt");

CREATE TABLE platform."UserBalance" (
    "userId" text PRIMARY KEY,
    balance integer NOT NULL DEFAULT 0,
    "updatedAt" timestamp(3) NOT NULL
);
