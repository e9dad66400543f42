/*
 * Contender 6: Fastify and ioredis. One script takes the unit and queues the grant (level C).
 *
 * Tuned: ioredis pipelines by itself what a turn of the event loop asks for (without it was slower);
 * EVALSHA by defineCommand; schemas for body and answers, which Fastify compiles; no logger. One
 * process, as ours has one that answers: a second would share two cores with Redis and the generator.
 */
'use strict'

const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const Fastify = require('fastify')
const Redis = require('ioredis')

const redis = new Redis(process.env.REDIS_URL, { enableAutoPipelining: true })
redis.defineCommand('take', {
  numberOfKeys: 3,
  lua: readFileSync(join(__dirname, '..', 'lua', 'queued.lua'), 'utf8')
})

const text = { type: 'string' }
const schema = {
  body: {
    type: 'object',
    required: ['person_token', 'out_request_no'],
    properties: {
      person_token: { type: 'string', minLength: 1, maxLength: 128 },
      out_request_no: { type: 'string', minLength: 1, maxLength: 64 },
      channel: { type: 'string', maxLength: 32 },
      region: { type: 'string', maxLength: 6 }
    }
  },
  response: {
    202: { type: 'object', properties: { status: text, drop_id: text, out_request_no: text } },
    409: {
      type: 'object',
      properties: { type: text, status: { type: 'integer' }, code: text, retryable: { type: 'boolean' } }
    }
  }
}
const REFUSALS = new Map([[-1, 'sold_out'], [-2, 'person_limit']])

const app = Fastify({ logger: false })

app.post('/v1/drops/:drop_id/grabs', { schema }, async (request, reply) => {
  const drop = request.params.drop_id
  const { person_token: person, out_request_no: number, channel = '', region = '' } = request.body
  const left = await redis.take(`stock:${drop}`, `persons:${drop}`, `grants:${drop}`, person, number, channel, region)
  const code = REFUSALS.get(left)
  if (code !== undefined) {
    reply.code(409).type('application/problem+json')
    return { type: `/problems/${code}`, status: 409, code, retryable: false }
  }
  reply.code(202)
  return { status: 'pending', drop_id: drop, out_request_no: number }
})

process.once('SIGTERM', () => app.close().then(() => redis.quit()))
app.listen({ host: '127.0.0.1', port: Number(process.env.PORT), backlog: 2048 })
