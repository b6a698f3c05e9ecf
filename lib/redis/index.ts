export { redis, type RedisEngine, type RedisOptions } from './engine.ts'
