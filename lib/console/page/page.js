import { Answers } from './answers.js'
import { Charts } from './charts.js'
import { Composer } from './composer.js'
import { DeviceDetails } from './device-details.js'
import { DeviceList } from './device-list.js'
import { $, batched, showText } from './element.js'
import { NotSignedIn, gateway } from './gateway.js'
import { Log } from './log.js'
import { TabDevice } from './tab-device.js'

const MIN_RETRY_MS = 500
const MAX_RETRY_MS = 10_000

const answers = new Answers()
const log = new Log()
const charts = new Charts()
const details = new DeviceDetails(openHere)
const composer = new Composer(async request => {
  await answers.send(request)
  details.look()
})
const roster = new DeviceList(id => {
  details.choose(id)
  composer.choose(id)
  log.choose(id)
})
/** The devices of this tab, by id. */
const tabDevices = new Map()
/** Ends the pause before the next attempt. */
let retryNow = () => {}

function openHere (id) {
  if (!tabDevices.has(id)) tabDevices.set(id, new TabDevice(id, () => forgetDevice(id)))
  tabDevices.get(id).focus()
  $('no-tab-devices').hidden = true
}

function forgetDevice (id) {
  tabDevices.delete(id)
  $('no-tab-devices').hidden = tabDevices.size > 0
  $('opener').elements.id.focus()
}

const randomId = () => `tab-${Math.random().toString(36).slice(2, 6)}`

$('host').textContent = location.host
$('open-first').addEventListener('click', () => openHere(randomId()))

$('opener').addEventListener('submit', event => {
  event.preventDefault()
  const { id } = event.target.elements
  const isId = /^[A-Za-z0-9._:@+=~-]*$/.test(id.value)
  showText($('opener-wrong'), isId ? '' : 'An id consists of letters, digits and . _ : @ + = ~ -')
  if (!isId) return
  openHere(id.value || randomId())
  id.value = ''
})

$('forget').addEventListener('click', () => {
  gateway.forget()
  location.reload()
})

$('sign-in').addEventListener('click', () => {
  gateway.retry()
  retryNow()
})

function receive ({ type, data }) {
  const event = JSON.parse(data)
  log.add(event)
  if (type === 'gap') catchUpSoon()
  else if (type === 'connected') roster.arrived({ ...event, since: event.data.since })
  else if (type === 'disconnected') roster.left(event)
  else if (type !== 'message') answers.ended(event)
  if (event.deviceId === details.id) details.look()
}

/** Fetches what events may have been missed about. */
async function catchUp () {
  await roster.load()
  answers.check()
  details.look()
}

/** If this fails, the connection is broken too, and the next one catches up. */
const catchUpSoon = batched(() => catchUp().catch(() => {}), 500)

function show (state, text) {
  $('live').dataset.state = state
  $('live').textContent = text
  $('forget').hidden = gateway.token === undefined
}

/** Follows the events while the page is open. Events that arrive before the list are applied after it. */
async function follow () {
  let lastId
  let wasLive = false
  for (let attempts = 0; ; attempts++) {
    let early = []
    // a server reports a gap only if it knows where the page was
    const hasGap = wasLive && lastId === undefined
    const opened = async () => {
      await catchUp()
      if (hasGap) log.add({ type: 'gap', at: Date.now(), data: { reason: 'the page was not connected' } })
      for (const event of early) receive(event)
      wasLive = true
      early = undefined
      attempts = 0
      show('on', 'Live')
      $('connect-line').textContent = connectLine()
    }
    try {
      await enter()
      for await (const event of gateway.events(lastId, opened)) {
        lastId = event.id ?? lastId
        if (early) early.push(event)
        else receive(event)
      }
      show('off', 'The server has ended the connection. Reconnecting')
    } catch (error) {
      show('off', error instanceof TypeError || error.name === 'AbortError' ? 'The server does not answer. Reconnecting' : error.message)
      $('sign-in').hidden = !(error instanceof NotSignedIn)
    }
    await pause(Math.min(MAX_RETRY_MS, MIN_RETRY_MS * 2 ** attempts) * (0.75 + Math.random() / 2))
  }
}

/** Loads the charts first: whoever may see them may use the page. */
async function enter () {
  const { ok, status, body } = await charts.load()
  $('sign-in').hidden = true
  if (ok) return
  if (body.code === 'UNAUTHENTICATED') throw new NotSignedIn(body.message)
  throw status === 0 ? new TypeError(body.message) : new Error(body.message ?? `The server answers ${status}`)
}

async function pause (delay) {
  await new Promise(resolve => {
    retryNow = resolve
    setTimeout(resolve, delay)
  })
}

function connectLine () {
  const url = `${gateway.socketUrl.replace('http', 'ws')}?deviceId=abc123`
  return `npx wscat -c "${url}"${gateway.token ? ' -H "authorization: Bearer $TOKEN"' : ''}`
}

roster.choose(undefined)
void follow()
