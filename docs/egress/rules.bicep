// Written by `portcullis egress -o bicep`: what this configuration needs,
// with the known registries as of 2026-11-22. `portcullis egress --diff` says what has changed.
// - *.blob.core.windows.net is every storage account of Azure, anybody's: registries with dedicated data endpoints (`az acr update --data-endpoint-enabled`) do without it
// - registry.k8s.io answers from buckets in 32 regions. Each is named, because *.s3.dualstack.<region>.amazonaws.com would open every bucket of S3 there, anybody's
// - AKS nodes need hosts of their own: the tag AzureKubernetesService, with their subnet as the source

@description('The firewall policy that gets the rules.')
param firewallPolicyName string

@description('This proxy and nothing else, such as 10.42.3.4/32.')
param proxyAddress string = '10.42.3.4/32'

resource policy 'Microsoft.Network/firewallPolicies@2024-05-01' existing = {
  name: firewallPolicyName
}

resource egress 'Microsoft.Network/firewallPolicies/ruleCollectionGroups@2024-05-01' = {
  parent: policy
  name: 'portcullis-egress'
  properties: {
    priority: 300
    ruleCollections: [
      {
        ruleCollectionType: 'FirewallPolicyFilterRuleCollection'
        name: 'registries'
        priority: 110
        action: {
          type: 'Allow'
        }
        rules: [
          {
            ruleType: 'ApplicationRule'
            name: 'corp-azurecr-io'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              '*.blob.core.windows.net'
              '*.data.azurecr.io'
              'corp.azurecr.io'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'docker-io'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              'auth.docker.io'
              'docker-images-prod.6aa30f8b08e16409b46e0173d6de2f56.r2.cloudflarestorage.com'
              'production.cloudflare.docker.com'
              'production.cloudfront.docker.com'
              'registry-1.docker.io'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'mcr-microsoft-com'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              '*.data.mcr.microsoft.com'
              'mcr.microsoft.com'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'quay-io'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              'cdn.quay.io'
              'cdn01.quay.io'
              'cdn02.quay.io'
              'cdn03.quay.io'
              'cdn04.quay.io'
              'cdn05.quay.io'
              'cdn06.quay.io'
              'quay-registry.s3.amazonaws.com'
              'quay.io'
              'quayio-production-s3.s3.amazonaws.com'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'registry-corp-example'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              'login.corp.example'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'registry-corp-example-5000'
            protocols: [
              {
                protocolType: 'Https'
                port: 5000
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              'registry.corp.example'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'registry-k8s-io'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              '*.pkg.dev'
              '767373bbdcb8270361b96548387bf2a9ad0d48758c35-eu-west-2.s3.dualstack.eu-west-2.amazonaws.com'
              'prod-registry-k8s-io-af-south-1.s3.dualstack.af-south-1.amazonaws.com'
              'prod-registry-k8s-io-ap-east-1.s3.dualstack.ap-east-1.amazonaws.com'
              'prod-registry-k8s-io-ap-northeast-1.s3.dualstack.ap-northeast-1.amazonaws.com'
              'prod-registry-k8s-io-ap-northeast-2.s3.dualstack.ap-northeast-2.amazonaws.com'
              'prod-registry-k8s-io-ap-northeast-3.s3.dualstack.ap-northeast-3.amazonaws.com'
              'prod-registry-k8s-io-ap-south-1.s3.dualstack.ap-south-1.amazonaws.com'
              'prod-registry-k8s-io-ap-south-2.s3.dualstack.ap-south-2.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-1.s3.dualstack.ap-southeast-1.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-2.s3.dualstack.ap-southeast-2.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-3.s3.dualstack.ap-southeast-3.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-4.s3.dualstack.ap-southeast-4.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-5.s3.dualstack.ap-southeast-5.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-6.s3.dualstack.ap-southeast-6.amazonaws.com'
              'prod-registry-k8s-io-ap-southeast-7.s3.dualstack.ap-southeast-7.amazonaws.com'
              'prod-registry-k8s-io-ca-central-1.s3.dualstack.ca-central-1.amazonaws.com'
              'prod-registry-k8s-io-ca-west-1.s3.dualstack.ca-west-1.amazonaws.com'
              'prod-registry-k8s-io-eu-central-1.s3.dualstack.eu-central-1.amazonaws.com'
              'prod-registry-k8s-io-eu-central-2.s3.dualstack.eu-central-2.amazonaws.com'
              'prod-registry-k8s-io-eu-north-1.s3.dualstack.eu-north-1.amazonaws.com'
              'prod-registry-k8s-io-eu-south-1.s3.dualstack.eu-south-1.amazonaws.com'
              'prod-registry-k8s-io-eu-south-2.s3.dualstack.eu-south-2.amazonaws.com'
              'prod-registry-k8s-io-eu-west-1.s3.dualstack.eu-west-1.amazonaws.com'
              'prod-registry-k8s-io-eu-west-3.s3.dualstack.eu-west-3.amazonaws.com'
              'prod-registry-k8s-io-il-central-1.s3.dualstack.il-central-1.amazonaws.com'
              'prod-registry-k8s-io-me-central-1.s3.dualstack.me-central-1.amazonaws.com'
              'prod-registry-k8s-io-mx-central-1.s3.dualstack.mx-central-1.amazonaws.com'
              'prod-registry-k8s-io-sa-east-1.s3.dualstack.sa-east-1.amazonaws.com'
              'prod-registry-k8s-io-us-east-1.s3.dualstack.us-east-1.amazonaws.com'
              'prod-registry-k8s-io-us-east-2.s3.dualstack.us-east-2.amazonaws.com'
              'prod-registry-k8s-io-us-west-1.s3.dualstack.us-west-1.amazonaws.com'
              'prod-registry-k8s-io-us-west-2.s3.dualstack.us-west-2.amazonaws.com'
              'registry.k8s.io'
            ]
          }
          {
            ruleType: 'ApplicationRule'
            name: 'store-shared'
            protocols: [
              {
                protocolType: 'Https'
                port: 443
              }
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
              'corpimages.blob.core.windows.net'
              'login.microsoftonline.com'
            ]
          }
        ]
      }
    ]
  }
}
