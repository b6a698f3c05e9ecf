import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../test/campaigns/port.ts'
import { programAt } from '../test/programs.ts'
import type { Server } from './server.ts'

// Third-party servers that are not Node programs, each configured for speed.

const NCHAN_MODULE = '/usr/lib/nginx/modules/ngx_nchan_module.so'

export async function startNats (path: string): Promise<Server> {
  return await start(path, folder => ['-c', join(folder, 'conf'), '--ports_file_dir', folder], [
    'host: "127.0.0.1"', 'port: -1', 'ping_interval: "1h"', 'websocket { host: "127.0.0.1", port: -1, no_tls: true }'
  ], portIn)
}

/** Mosquitto does not start with a WebSocket listener alone. */
export async function startMosquitto (path: string): Promise<Server> {
  const [plain, port] = [await freePort(), await freePort()]
  return await start(path, folder => ['-c', join(folder, 'conf')], [
    `listener ${plain} 127.0.0.1`, `listener ${port} 127.0.0.1`, 'protocol websockets',
    'allow_anonymous true', 'set_tcp_nodelay true', 'log_type none', 'max_queued_messages 0'
  ], () => answering(port))
}

/** The path of nginx, if its nchan module is installed. */
export function nchanAt (): string | undefined {
  return existsSync(NCHAN_MODULE) ? programAt('nginx') : undefined
}

/** A single process, so that its CPU time is the total. */
export async function startNchan (path: string): Promise<Server> {
  const port = await freePort()
  return await start(path, folder => ['-p', folder, '-c', join(folder, 'conf')], [
    `load_module ${NCHAN_MODULE};`, 'daemon off;', 'master_process off;', 'pid nginx.pid;', 'error_log stderr crit;', 'worker_rlimit_nofile 40000;',
    'events { worker_connections 20000; }',
    'http {', 'access_log off;', 'client_body_temp_path body;', 'proxy_temp_path proxy;', 'fastcgi_temp_path fastcgi;', 'uwsgi_temp_path uwsgi;', 'scgi_temp_path scgi;',
    'keepalive_requests 1000000000;',
    `server { listen 127.0.0.1:${port} backlog=4096; nchan_message_buffer_length 1000; nchan_subscriber_first_message newest;`,
    'location = /all { nchan_subscriber websocket; nchan_channel_id all; }',
    'location = /broadcast { nchan_publisher; nchan_channel_id all; }',
    'location ~ ^/ws/(.+)$ { nchan_subscriber websocket; nchan_channel_id $1; }',
    'location ~ ^/devices/(.+)/messages$ { nchan_publisher; nchan_channel_id $1; }',
    '} }'
  ], () => answering(port))
}

/** Runs a program with a temporary folder and a configuration file. */
async function start (path: string, parameters: (folder: string) => string[], configuration: string[], ready: (folder: string) => Promise<number>): Promise<Server> {
  const folder = mkdtempSync(join(tmpdir(), 'bench-'))
  writeFileSync(join(folder, 'conf'), configuration.map(line => `${line}\n`).join(''))
  const program = spawn(path, parameters(folder), { stdio: 'ignore' })
  const ended = once(program, 'exit')
  return {
    pids: [program.pid!],
    port: await Promise.race([ready(folder), ended.then(() => { throw new Error(`${path} has ended`) })]),
    async end () {
      program.kill()
      await ended
      rmSync(folder, { recursive: true })
    }
  }
}

/** The WebSocket port, from the ports file of nats-server. */
async function portIn (folder: string): Promise<number> {
  for (;;) {
    const file = readdirSync(folder).find(name => name.endsWith('.ports'))
    const text = file && readFileSync(join(folder, file), 'utf8')
    if (text) return Number(new URL(JSON.parse(text).websocket[0]).port)
    await sleep(10)
  }
}

/** Resolves once the port accepts connections. */
async function answering (port: number): Promise<number> {
  for (;;) {
    const socket = connect(port, '127.0.0.1')
    const listens = await new Promise<boolean>(resolve => {
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false))
    })
    socket.destroy()
    if (listens) return port
    await sleep(10)
  }
}
