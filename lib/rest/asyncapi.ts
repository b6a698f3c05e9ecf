import { Type } from '@sinclair/typebox'
import { routeAction } from './authorizer.ts'
import { operation } from './operation.ts'
import type { Route } from './route.ts'

/** `/asyncapi.json` */
export const asyncapi: Route = (app, { devices }) => {
  app.get('/asyncapi.json', {
    config: routeAction('asyncapi'),
    schema: operation({
      id: 'asyncapi', tag: 'devices', summary: 'Describe the WebSocket of devices as an AsyncAPI document', responses: { 200: Type.Object({}, { additionalProperties: true }) }
    })
  }, () => devices.asyncapi())
}
